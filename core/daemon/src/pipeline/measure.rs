//! The measure stage.

use tokio_util::sync::CancellationToken;

use super::Pipeline;
use super::forge::Stop;
use crate::ledger::JobRecord;

impl Pipeline {
    /// Measures what was forged.
    #[allow(clippy::unused_async)]
    pub(super) async fn measure(&self, _job: &JobRecord, _token: &CancellationToken) -> Result<(), Stop> {
        Ok(())
    }
}
