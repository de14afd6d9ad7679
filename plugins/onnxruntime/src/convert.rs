//! Artifacts at plain precision.

use drophammer_models::export::onnx::Storage;
use drophammer_sdk::{BackendError, ErrorCode, ForgeReport, ForgeRequest, HostInfo, JobContext, Result};

use crate::forge;

/// Makes an fp32, fp16 or bf16 directory.
///
/// # Errors
/// As for [`forge::forge`]; a scheme that quantizes is refused.
pub(crate) fn convert(host: &HostInfo, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
    if !matches!(forge::scheme_of(&request.goal)?.storage, Storage::Float(_)) {
        let message = format!("{} quantizes: it is not a conversion", request.goal.scheme);
        return Err(
            BackendError::new(ErrorCode::InvalidRequest, message).with_help("Ask for it to be quantized.")
        );
    }
    forge::forge(host, request, job)
}
