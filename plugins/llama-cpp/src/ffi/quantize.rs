//! The library's own quantizer.

use std::ffi::CString;
use std::path::Path;

use drophammer_sdk::{BackendError, ErrorCode, Result};
use llama_cpp_sys_2 as sys;

use super::{log, path as c_path, start};

/// What to make.
#[derive(Debug, Clone, Default)]
pub(crate) struct Order {
    /// `llama_ftype`.
    pub(crate) file_type: u32,
    pub(crate) threads: u32,
    /// Mean squares of activations, by tensor.
    pub(crate) importance: Vec<(String, Vec<f32>)>,
    /// Patterns and the ggml types of what they match.
    pub(crate) overrides: Vec<(String, u32)>,
    /// Only say what would come out.
    pub(crate) dry_run: bool,
}

/// Quantizes a file that our own parser has accepted.
///
/// # Errors
/// The library's own words.
pub(crate) fn quantize(source: &Path, target: &Path, order: &Order) -> Result<()> {
    start();
    let (from, to) = (c_path(source)?, c_path(target)?);
    let text = |text: &str| {
        CString::new(text).map_err(|_| {
            BackendError::new(ErrorCode::InvalidRequest, format!("{text:?} holds a zero byte"))
                .with_help("Write the option without it.")
        })
    };
    let names = order.importance.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>>>()?;
    let patterns = order.overrides.iter().map(|(pattern, _)| text(pattern)).collect::<Result<Vec<_>>>()?;
    let mut importance: Vec<sys::llama_model_imatrix_data> = names
        .iter()
        .zip(&order.importance)
        .map(|(name, (_, values))| sys::llama_model_imatrix_data {
            name: name.as_ptr(),
            data: values.as_ptr(),
            size: values.len(),
        })
        .collect();
    importance.push(sys::llama_model_imatrix_data {
        name: std::ptr::null(),
        data: std::ptr::null(),
        size: 0,
    });
    let mut overrides: Vec<sys::llama_model_tensor_override> = patterns
        .iter()
        .zip(&order.overrides)
        .map(|(pattern, (_, dtype))| sys::llama_model_tensor_override {
            pattern: pattern.as_ptr(),
            type_: *dtype,
        })
        .collect();
    overrides
        .push(sys::llama_model_tensor_override { pattern: std::ptr::null(), type_: sys::GGML_TYPE_COUNT });
    log::clear_errors();
    // SAFETY: paths, lists and the strings they point to live during the call; both lists end with a null name.
    let code = unsafe {
        let mut parameters = sys::llama_model_quantize_default_params();
        parameters.nthread = order.threads as i32;
        parameters.ftype = order.file_type;
        parameters.allow_requantize = true;
        parameters.dry_run = order.dry_run;
        if !order.importance.is_empty() {
            parameters.imatrix = importance.as_ptr();
        }
        if !order.overrides.is_empty() {
            parameters.tt_overrides = overrides.as_ptr();
        }
        sys::llama_model_quantize(from.as_ptr(), to.as_ptr(), &raw const parameters)
    };
    if code == 0 {
        return Ok(());
    }
    let message = format!("{}: llama.cpp cannot quantize it: {}", source.display(), log::errors());
    Err(BackendError::new(ErrorCode::Failed, message)
        .with_help("Choose another scheme, give an importance matrix, or use engine = \"drophammer\"."))
}
