//! Quantized artifacts, straight from the source.

use drophammer_forge::gguf;
use drophammer_sdk::{ForgeReport, ForgeRequest, JobContext, Result};

/// Makes a GGUF file of any scheme.
///
/// # Errors
/// As for [`gguf::quantize`].
pub(crate) fn quantize(request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
    gguf::quantize(request, job)
}
