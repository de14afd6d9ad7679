//! Directories at plain precision.

use drophammer_sdk::{BackendError, ErrorCode, ForgeReport, ForgeRequest, JobContext, Result};

use crate::forge;

/// Makes a directory of bfloat16, float16 or float32 weights.
///
/// # Errors
/// As for [`forge::forge`]; a scheme that quantizes is refused.
pub(crate) fn convert(request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
    let scheme = forge::scheme_of(&request.goal)?;
    if !scheme.is_plain() {
        let message = format!("{} quantizes: it is not a conversion", scheme.name);
        return Err(
            BackendError::new(ErrorCode::InvalidRequest, message).with_help("Ask for it to be quantized.")
        );
    }
    forge::forge(request, job)
}
