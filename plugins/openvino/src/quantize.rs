//! Compressed artifacts, straight from the source.

use drophammer_sdk::{ForgeReport, ForgeRequest, JobContext, Result};

use crate::forge;

/// Makes a directory of any scheme in one pass, without an intermediate file.
///
/// # Errors
/// As for [`forge::forge`].
pub(crate) fn quantize(request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
    forge::forge(request, job)
}
