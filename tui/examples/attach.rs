//! The dashboard alone, attached to a daemon that already runs.
//!
//! `cargo run -p drophammer-tui --example attach -- ENDPOINT [THEME]`

use drophammer_client::Endpoint;
use drophammer_tui::{TuiConfig, TuiOptions, run};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let endpoint = arguments.next().unwrap_or_else(|| "127.0.0.1:8777".to_owned());
    run(TuiOptions {
        endpoint: Endpoint::parse(&endpoint)?,
        key: None,
        config: TuiConfig::default(),
        theme: arguments.next(),
    })
}
