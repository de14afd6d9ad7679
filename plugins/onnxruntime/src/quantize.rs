//! Quantized artifacts, straight from the source.

use drophammer_sdk::{ForgeReport, ForgeRequest, HostInfo, JobContext, Result};

use crate::forge;

/// Makes a directory of any scheme in one pass.
///
/// # Errors
/// As for [`forge::forge`].
pub(crate) fn quantize(host: &HostInfo, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
    forge::forge(host, request, job)
}
