//! llama.cpp's own quantizer, driven directly, for comparisons: prints its seconds.
//!
//! `upstream_quantize SOURCE.gguf TARGET.gguf SCHEME [--threads N] [--imatrix FILE]`
#![allow(unsafe_code, clippy::expect_used, clippy::unwrap_used)]

use std::ffi::{CString, c_char, c_void};
use std::path::Path;
use std::time::Instant;

use drophammer_quant::importance::Importance;
use drophammer_quant::presets;
use llama_cpp_sys_2 as sys;

unsafe extern "C" fn quiet(_: sys::ggml_log_level, _: *const c_char, _: *mut c_void) {}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let option =
        |name: &str| arguments.iter().position(|word| word == name).map(|at| arguments[at + 1].clone());
    let [source, target, scheme] = &arguments[..3] else { unreachable!("a slice of three") };
    let preset = presets::preset(scheme).expect("a scheme such as q4_k_m");
    let threads: i32 = option("--threads").map_or(0, |text| text.parse().expect("a number of threads"));
    let importance = option("--imatrix").map(|path| Importance::read(Path::new(&path)).expect("an imatrix"));
    let importance: Vec<(CString, Vec<f32>)> = importance
        .into_iter()
        .flat_map(|importance| importance.matrices)
        .map(|(name, columns)| {
            let experts = (0..columns.counts.len()).filter_map(|expert| columns.mean_squares(expert));
            (CString::new(name).unwrap(), experts.flatten().collect())
        })
        .collect();
    let mut list: Vec<sys::llama_model_imatrix_data> = importance
        .iter()
        .map(|(name, values)| sys::llama_model_imatrix_data {
            name: name.as_ptr(),
            data: values.as_ptr(),
            size: values.len(),
        })
        .collect();
    list.push(sys::llama_model_imatrix_data { name: std::ptr::null(), data: std::ptr::null(), size: 0 });
    let (from, to) = (CString::new(source.as_str()).unwrap(), CString::new(target.as_str()).unwrap());
    // SAFETY: all pointers live until the end of main; the list ends with a null name.
    let (code, seconds) = unsafe {
        if !arguments.iter().any(|word| word == "--verbose") {
            sys::llama_log_set(Some(quiet), std::ptr::null_mut());
        }
        sys::llama_backend_init();
        let mut parameters = sys::llama_model_quantize_default_params();
        parameters.ftype = preset.file_type;
        parameters.nthread = threads;
        parameters.allow_requantize = true;
        if !importance.is_empty() {
            parameters.imatrix = list.as_ptr();
        }
        let start = Instant::now();
        let code = sys::llama_model_quantize(from.as_ptr(), to.as_ptr(), &raw const parameters);
        (code, start.elapsed().as_secs_f64())
    };
    assert!(code == 0, "llama_model_quantize failed");
    println!("{scheme} {seconds:.3} s {} bytes", std::fs::metadata(target).unwrap().len());
}
