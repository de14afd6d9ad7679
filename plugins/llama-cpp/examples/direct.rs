//! libllama driven directly, as its own tools drive it: what this plugin's whole path is measured against.
//!
//! `direct speed MODEL.gguf [-p 512] [-n 128] [-t 2] [-r 3]` prints tokens per second of each run, with `-s 8` those of so many
//! sequences together;
//! `direct greedy MODEL.gguf PROMPT [-n 64] [-t 2]` prints the most probable continuation.
//!
//! Built with the feature `dynamic`, it takes its kernels from the directory that `DROPHAMMER_KERNELS` names: with that of
//! the packaged plugin there and in `LD_LIBRARY_PATH`, both run the very same libraries.
#![allow(unsafe_code, clippy::expect_used, clippy::unwrap_used)]

use drophammer_sdk::most_likely;
use std::ffi::{CString, c_char, c_void};
use std::time::Instant;

use llama_cpp_sys_2 as sys;

type NewPool = unsafe extern "C" fn(*mut sys::ggml_threadpool_params) -> *mut sys::ggml_threadpool;

unsafe extern "C" fn quiet(_: sys::ggml_log_level, _: *const c_char, _: *mut c_void) {}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, usual: i32| {
        let given =
            arguments.iter().position(|word| word == name).map(|at| arguments[at + 1].parse().unwrap());
        given.unwrap_or(usual)
    };
    let (threads, generate) =
        (number("-t", 2), number("-n", if arguments[0] == "greedy" { 64 } else { 128 }));
    let sequences = number("-s", 1);
    let direct = Direct::new(&arguments[1], threads, sequences);
    match arguments[0].as_str() {
        "speed" => {
            let (prompt, runs) = (number("-p", 512), number("-r", 3));
            let prefill: Vec<f64> = (0..=runs).map(|_| direct.timed(prompt, prompt)).skip(1).collect();
            let decode = (0..=runs).map(|_| match sequences {
                1 => direct.timed(generate, 1),
                _ => direct.together(generate, sequences),
            });
            let decode: Vec<f64> = decode.skip(1).collect();
            println!("prefill {prefill:.1?} decode {decode:.1?} tokens/s");
        }
        "greedy" => println!("{}", direct.greedy(&arguments[2], generate)),
        other => panic!("neither speed nor greedy: {other}"),
    }
}

struct Direct {
    model: *mut sys::llama_model,
    context: *mut sys::llama_context,
}

impl Direct {
    fn new(path: &str, threads: i32, sequences: i32) -> Self {
        let path = CString::new(path).unwrap();
        // SAFETY: parameters are plain data, the path lives during the call; all is freed by the process's end.
        unsafe {
            sys::llama_log_set(Some(quiet), std::ptr::null_mut());
            if let Ok(place) = std::env::var("DROPHAMMER_KERNELS") {
                sys::ggml_backend_load_all_from_path(CString::new(place).unwrap().as_ptr());
            }
            sys::llama_backend_init();
            let model = sys::llama_model_load_from_file(path.as_ptr(), sys::llama_model_default_params());
            assert!(!model.is_null(), "the model cannot be loaded");
            let mut parameters = sys::llama_context_default_params();
            (parameters.n_ctx, parameters.n_batch, parameters.n_ubatch) = (1024 * sequences as u32, 512, 512);
            parameters.n_seq_max = sequences as u32;
            (parameters.n_threads, parameters.n_threads_batch) = (threads, threads);
            let context = sys::llama_init_from_model(model, parameters);
            assert!(!context.is_null(), "no context");
            // As llama-bench does.
            let mut pool = sys::ggml_threadpool_params_default(threads);
            let cpu = sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU);
            let kernels = sys::ggml_backend_dev_backend_reg(cpu);
            let new = sys::ggml_backend_reg_get_proc_address(kernels, c"ggml_threadpool_new".as_ptr());
            let new = std::mem::transmute::<*mut c_void, NewPool>(new);
            let pool = new(&raw mut pool);
            sys::llama_attach_threadpool(context, pool, pool);
            Self { model, context }
        }
    }

    fn clear(&self) {
        // SAFETY: the context lives.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.context), true) }
    }

    /// Pushes tokens on.
    fn push(&self, tokens: &mut [i32]) {
        // SAFETY: the batch points to these tokens during the call.
        unsafe {
            let batch = sys::llama_batch_get_one(tokens.as_mut_ptr(), tokens.len() as i32);
            assert_eq!(sys::llama_decode(self.context, batch), 0);
        }
    }

    /// The most probable next token after what was pushed.
    fn next(&self) -> i32 {
        // SAFETY: logits are as many as the vocabulary, and stay until the next push.
        unsafe {
            let vocabulary = sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(self.model)) as usize;
            let logits = std::slice::from_raw_parts(sys::llama_get_logits_ith(self.context, -1), vocabulary);
            most_likely(logits).unwrap() as i32
        }
    }

    /// Tokens per second of `count` tokens, so many at once.
    fn timed(&self, count: i32, at_once: i32) -> f64 {
        self.clear();
        let start = Instant::now();
        let mut done = 0;
        while done < count {
            let end = (done + at_once.min(512)).min(count);
            let mut tokens: Vec<i32> = (done..end).map(|at| at % 1000 + 3).collect();
            self.push(&mut tokens);
            done = end;
        }
        f64::from(count) / start.elapsed().as_secs_f64()
    }

    /// Tokens per second when `sequences` grow by `count` tokens each, side by side.
    fn together(&self, count: i32, sequences: i32) -> f64 {
        self.clear();
        // SAFETY: the batch has room for as many tokens, of one sequence each.
        unsafe {
            let mut batch = sys::llama_batch_init(sequences, 0, 1);
            batch.n_tokens = sequences;
            let start = Instant::now();
            for at in 0..count {
                for sequence in 0..sequences {
                    let i = sequence as usize;
                    *batch.token.add(i) = at % 1000 + 3;
                    *batch.pos.add(i) = at;
                    *batch.n_seq_id.add(i) = 1;
                    **batch.seq_id.add(i) = sequence;
                    *batch.logits.add(i) = 1;
                }
                assert_eq!(sys::llama_decode(self.context, batch), 0);
            }
            let seconds = start.elapsed().as_secs_f64();
            sys::llama_batch_free(batch);
            f64::from(count * sequences) / seconds
        }
    }

    fn greedy(&self, prompt: &str, count: i32) -> String {
        // SAFETY: buffers are as long as told.
        unsafe {
            let vocabulary = sys::llama_model_get_vocab(self.model);
            let mut tokens = vec![0; prompt.len() + 8];
            let found = sys::llama_tokenize(
                vocabulary,
                prompt.as_ptr().cast(),
                prompt.len() as i32,
                tokens.as_mut_ptr(),
                tokens.len() as i32,
                true,
                true,
            );
            tokens.truncate(found as usize);
            let mut bytes = Vec::new();
            self.push(&mut tokens);
            let mut next = self.next();
            for _ in 0..count {
                if sys::llama_vocab_is_eog(vocabulary, next) {
                    break;
                }
                let mut piece = [0_u8; 256];
                let length =
                    sys::llama_token_to_piece(vocabulary, next, piece.as_mut_ptr().cast(), 256, 0, false);
                bytes.extend_from_slice(&piece[..length.max(0) as usize]);
                self.push(&mut [next]);
                next = self.next();
            }
            String::from_utf8_lossy(&bytes).into_owned()
        }
    }
}
