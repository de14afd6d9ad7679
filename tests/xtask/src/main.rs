//! Project tasks: `cargo xtask <task>`. Each task is one module; this file only dispatches.

mod abi;
mod arm;
mod clients;
mod conformance;
mod demo;
mod fetch;
mod generate_model;
mod picture;
mod plugins;
mod record;
mod runtimes;
mod shell;
mod test;
mod toolchain;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the Drophammer project")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Forge two real models in a throw-away home, print what came out, ask one a question.
    Demo(demo::Options),
    /// Formatting, lints, documentation and every test.
    Test(test::Options),
    /// Ask a backend for everything that every backend promises.
    Conformance(conformance::Options),
    /// Prove that a plugin built by another compiler loads and runs.
    Abi(abi::Options),
    /// Test the native engine's kernels on emulated Arm processors.
    Arm(arm::Options),
    /// Build the `drophammer` binary and the plugins, and package the plugins beside it.
    Plugins(plugins::Options),
    /// Fetch a real model into the cache outside the repository and print its path.
    Fetch {
        /// Which model.
        model: fetch::Model,
    },
    /// Install the runtimes that tests need into the cache outside the repository and print the directory, which
    /// `DROPHAMMER_RUNTIMES` then names.
    Runtimes,
    /// Turn a captured terminal screen into an SVG picture.
    Picture(picture::Options),
    /// Play a tour of the dashboard and write it as a terminal recording and a picture.
    Record(record::Options),
    /// Make a large model of random weights, for measuring.
    GenerateModel(generate_model::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => test::run(&options),
        Task::GenerateModel(options) => generate_model::run(&options),
        Task::Picture(options) => picture::run(&options),
        Task::Record(options) => record::run(&options),
        Task::Conformance(options) => conformance::run(&options),
        Task::Abi(options) => abi::run(&options),
        Task::Arm(options) => arm::run(&options),
        Task::Plugins(options) => plugins::run(&options),
        Task::Runtimes => {
            println!("{}", runtimes::provide()?.display());
            Ok(())
        }
        Task::Fetch { model } => {
            println!("{}", fetch::path(model)?.display());
            Ok(())
        }
    }
}
