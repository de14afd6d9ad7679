//! The native engine as a plugin. Other plugins link the engine too, and a dylib has one entry: so it stands in a crate of its own.

drophammer_sdk::export_backend!(drophammer_native::Native::open);
