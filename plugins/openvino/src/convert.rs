//! Artifacts at plain precision.

use drophammer_sdk::{BackendError, ErrorCode, ForgeReport, ForgeRequest, JobContext, Result};

use crate::forge;
use crate::scheme::Scheme;

/// Makes an fp32, fp16 or bf16 directory.
///
/// # Errors
/// As for [`forge::forge`]; a scheme that quantizes is refused.
pub(crate) fn convert(request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
    let scheme = Scheme::of(&request.goal)?;
    if scheme.quantizes() {
        let message = format!("{} quantizes: it is not a conversion", scheme.name);
        return Err(
            BackendError::new(ErrorCode::InvalidRequest, message).with_help("Ask for it to be quantized.")
        );
    }
    forge::forge(request, job)
}
