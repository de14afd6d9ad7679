//! The plugin ABI; the only crate that names abi_stable.
