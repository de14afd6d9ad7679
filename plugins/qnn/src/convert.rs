//! Contexts at half precision.

use drophammer_sdk::{BackendError, ErrorCode, ForgeReport, ForgeRequest, HostInfo, JobContext, Result};

use crate::{forge, scheme};

/// Makes an fp16 folder.
///
/// # Errors
/// As for [`forge::forge`]; a scheme that quantizes is refused.
pub(crate) fn convert(host: &HostInfo, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
    if scheme::of(&request.goal)?.calibrated() {
        let message = format!("{} quantizes: it is not a conversion", request.goal.scheme);
        return Err(
            BackendError::new(ErrorCode::InvalidRequest, message).with_help("Ask for it to be quantized.")
        );
    }
    forge::forge(host, request, job)
}
