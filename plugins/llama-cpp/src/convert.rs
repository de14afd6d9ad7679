//! Artifacts at plain precision.

use drophammer_forge::gguf;
use drophammer_sdk::{ForgeReport, ForgeRequest, JobContext, Result};

/// Makes an F32, F16 or BF16 GGUF file with our own writer: llama.cpp's converter is a Python program.
///
/// # Errors
/// As for [`gguf::convert`].
pub(crate) fn convert(request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
    gguf::convert(request, job)
}
