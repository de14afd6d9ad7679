//! Control-API types and client.
