//! Artifacts at plain precision.

use drophammer_sdk::{BackendError, ErrorCode, ForgeReport, ForgeRequest, JobContext, Result};

use crate::forge;

/// Makes an F32, F16 or BF16 GGUF file.
///
/// # Errors
/// As for [`forge::forge`]; a scheme that quantizes is refused.
pub(crate) fn convert(request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
    let preset = forge::preset_of(&request.goal)?;
    if preset.base.is_block() {
        let message = format!("{} quantizes: it is not a conversion", preset.name);
        return Err(
            BackendError::new(ErrorCode::InvalidRequest, message).with_help("Ask for it to be quantized.")
        );
    }
    forge::forge(request, job)
}
