//! Where the library's messages go: to whoever listens, at their level; without a listener, nowhere.
//!
//! A failed assertion reaches the listener and standard error before the library ends the process.

use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drophammer_sdk::LogLevel;
use llama_cpp_sys_2 as sys;

use super::owned;

/// Hears whole lines.
pub(crate) type Listener = dyn Fn(LogLevel, &str) + Send + Sync;

struct State {
    listener: Option<Arc<Listener>>,
    /// A line that has not ended yet: the library writes some in pieces.
    pending: String,
    level: LogLevel,
    /// The last errors, for whoever asks why something failed.
    errors: Vec<String>,
}

static STATE: Mutex<State> =
    Mutex::new(State { listener: None, pending: String::new(), level: LogLevel::Info, errors: Vec::new() });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Directs the library's messages here.
pub(super) fn install() {
    // SAFETY: the callbacks are functions that live for ever and take no user data.
    unsafe {
        sys::llama_log_set(Some(heard), std::ptr::null_mut());
        sys::ggml_set_abort_callback(Some(aborted));
    }
}

/// Listens from now on, in place of whoever did.
pub(crate) fn listen(listener: Arc<Listener>) {
    state().listener = Some(listener);
}

/// Runs a call whose messages nobody should read: only its errors are kept, for [`errors`].
pub(super) fn aside<T>(call: impl FnOnce() -> T) -> T {
    let listener = std::mem::take(&mut state().listener);
    let result = call();
    state().listener = listener;
    result
}

/// Runs a call and gives what the library said meanwhile.
pub(super) fn kept(call: impl FnOnce()) -> Vec<String> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&lines);
    let listener = state().listener.replace(Arc::new(move |_, line: &str| {
        keep.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned());
    }));
    call();
    state().listener = listener;
    std::mem::take(&mut *lines.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Forgets earlier errors: what follows is about a new call.
pub(crate) fn clear_errors() {
    state().errors.clear();
}

/// The errors since, in one line.
pub(crate) fn errors() -> String {
    let errors = std::mem::take(&mut state().errors);
    if errors.is_empty() { "llama.cpp gave no reason".to_owned() } else { errors.join("; ") }
}

/// Whether errors say that memory could not be had: the library has no code for that.
pub(super) fn tells_of_memory(errors: &str) -> bool {
    let errors = errors.to_lowercase();
    ["unable to allocate", "failed to allocate", "allocation of size", "out of memory", "outofdevicememory"]
        .iter()
        .any(|words| errors.contains(words))
}

unsafe extern "C" fn heard(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    let text = owned(text);
    let mut lines = Vec::new();
    let listener = {
        let mut state = state();
        if level != sys::GGML_LOG_LEVEL_CONT {
            if !state.pending.is_empty() {
                lines.push((state.level, std::mem::take(&mut state.pending)));
            }
            state.level = match level {
                sys::GGML_LOG_LEVEL_ERROR => LogLevel::Error,
                sys::GGML_LOG_LEVEL_WARN => LogLevel::Warning,
                sys::GGML_LOG_LEVEL_INFO => LogLevel::Info,
                _ => LogLevel::Debug,
            };
        }
        state.pending.push_str(&text);
        while let Some(end) = state.pending.find('\n') {
            let line: String = state.pending.drain(..=end).collect();
            lines.push((state.level, line.trim_end().to_owned()));
        }
        lines.retain(|(_, line)| !line.is_empty());
        for (_, line) in lines.iter().filter(|(level, _)| *level == LogLevel::Error) {
            // Function names before the first colon say nothing to users.
            let told = line.split_once(": ").map_or(line.as_str(), |(_, rest)| rest);
            if state.errors.len() < 8 {
                state.errors.push(told.to_owned());
            }
        }
        state.listener.clone()
    };
    // Not under the lock: a listener may call the library.
    if let Some(listener) = listener {
        for (level, line) in &lines {
            listener(*level, line);
        }
    }
}

unsafe extern "C" fn aborted(message: *const c_char) {
    let message = owned(message);
    // The process ends as soon as this returns; whoever watches it reads its standard error.
    eprintln!("llama.cpp stopped at a failed assertion: {message}");
    let listener = STATE.try_lock().ok().and_then(|state| state.listener.clone());
    if let Some(listener) = listener {
        listener(LogLevel::Error, &format!("llama.cpp stopped at a failed assertion: {message}"));
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use llama_cpp_sys_2 as sys;

    const FAIL: &str = "DROPHAMMER_TEST_FAILED_ASSERTION";

    #[test]
    fn a_failed_assertion_ends_only_its_process_and_is_read_on_standard_error() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "ffi::log::tests::asserts", "--nocapture"])
            .env(FAIL, "1")
            .output()
            .unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("failed assertion: here.cpp:7: GGML_ASSERT(two == 3) failed"), "{said}");
    }

    #[test]
    fn words_about_memory_are_known() {
        let table = [
            ("unable to allocate CUDA0 buffer", true),
            ("failed to allocate Vulkan0 buffer of size 7", true),
            ("Device memory allocation of size 7 failed", true),
            ("ErrorOutOfDeviceMemory", true),
            ("CUDA error: out of memory", true),
            ("unknown model architecture", false),
        ];
        for (said, expected) in table {
            assert_eq!(super::tells_of_memory(said), expected, "{said}");
        }
    }

    /// Fails in the process that the test above starts, which says so in its environment.
    #[test]
    fn asserts() {
        if std::env::var_os(FAIL).is_none() {
            return;
        }
        crate::ffi::start();
        // SAFETY: terminated strings, and a format without arguments.
        unsafe { sys::ggml_abort(c"here.cpp".as_ptr(), 7, c"GGML_ASSERT(two == 3) failed".as_ptr()) }
    }
}
