//! What would be made of a source, what it costs, and why.

use drophammer_client::api::PlanTarget;
use drophammer_daemon::{config, planning};

use super::answer;
use super::table::{columns, count, size};
use crate::arguments::Plan;
use crate::failure::{Exit, Failure, Result};
use crate::workshop::{Workshop, absolute};

pub(super) async fn run(arguments: Plan) -> Result<()> {
    let shop = Workshop::probed().await?;
    let source = absolute(&arguments.source)?;
    let mut targets = config::targets(&shop.home.root)?;
    if let Some(unknown) =
        arguments.targets.iter().find(|name| targets.iter().all(|target| target.name != **name))
    {
        let known: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
        let message = format!("there is no target {unknown}");
        return Err(Failure::new(Exit::Usage, message, format!("known are {}", known.join(", "))));
    }
    targets.retain(|target| arguments.targets.is_empty() || arguments.targets.contains(&target.name));
    let place = std::env::current_dir().unwrap_or_else(|_| std::env::temp_dir());
    let host = |id: &str| shop.host(id);
    let report =
        planning::report(&shop.config, &shop.catalog, &shop.supervisor, &host, &source, &place, &targets)
            .await?;
    answer(arguments.output.json, &report, |report| {
        let info = &report.source;
        let mut text = format!(
            "{}: {} {}, {} parameters, {}\n\n",
            info.path,
            info.architecture.as_deref().unwrap_or("unknown"),
            info.format.as_deref().unwrap_or("unknown"),
            count(info.parameters.unwrap_or(0)),
            size(info.bytes)
        );
        let rows: Vec<_> = report.targets.iter().map(row).collect();
        text += &columns(&["target", "backend", "size", "memory", "seconds", "how or why not"], &rows);
        text
    })
}

fn row(target: &PlanTarget) -> Vec<String> {
    let how = if target.supported { target.steps.join(", then ") } else { "no".to_owned() };
    let reason = target.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    vec![
        target.name.clone(),
        target.backend.clone(),
        target.bytes.map_or_else(|| "–".to_owned(), size),
        target.peak_memory_bytes.map_or_else(|| "–".to_owned(), size),
        super::table::maybe(target.seconds, 1),
        format!("{how}{reason}"),
    ]
}
