//! One-shot `convert` and `quantize`: the same workers, plugins and checks as in the daemon, without one.

use drophammer_daemon::worker::protocol::{Outcome, Work};
use drophammer_daemon::workers::Installed;
use drophammer_sdk::{Estimate, ForgeReport, ForgeRequest, Goal, ProbeRequest};

use super::calibrate::{self, Chosen};
use super::print;
use super::table::{maybe, size};
use crate::arguments::{Convert, Making, Quantize};
use crate::artifact::Staging;
use crate::failure::{Exit, Failure, Result};
use crate::workshop::Workshop;

/// Formats whose makers take `--compensate` and `--awq`.
const INFORMED: [&str; 2] = ["gguf", "openvino"];

pub(super) async fn convert(arguments: Convert) -> Result<()> {
    let shop = Workshop::probed().await?;
    let goal = Goal { format: arguments.to, scheme: arguments.scheme.unwrap_or_default(), ..Goal::default() };
    forge(&shop, goal, arguments.making, None).await
}

pub(super) async fn quantize(arguments: Quantize) -> Result<()> {
    let shop = Workshop::probed().await?;
    let mixture = &arguments.mixture;
    let chosen = if mixture.within.is_some() || mixture.plan.is_some() {
        Some(calibrate::choose(&shop, &arguments).await?)
    } else {
        None
    };
    // A plan names types of one format. Makers of others get its measurements, and choose among their own types.
    let planned =
        chosen.as_ref().filter(|_| arguments.to.as_deref().is_none_or(|to| to == calibrate::FORMAT));
    let scheme = arguments.scheme.or_else(|| planned.map(Chosen::scheme)).unwrap_or_default();
    let format = match arguments.to {
        Some(format) => format,
        None => format_of(&shop, &scheme)?,
    };
    let planned = planned.filter(|_| format == calibrate::FORMAT);
    let mut options = drophammer_sdk::Options::new();
    if let (Some(chosen), None) = (&chosen, planned) {
        options.extend(chosen.measurements());
    }
    // The first override that fits decides: the user's own come before those of a plan.
    let types = planned.into_iter().flat_map(Chosen::overrides);
    let overrides: Vec<String> = mixture.tensors.iter().cloned().chain(types).collect();
    if !overrides.is_empty() {
        options.insert("overrides".to_owned(), overrides.into());
    }
    if let Some(bytes) = mixture.split {
        options.insert("max_file_bytes".to_owned(), bytes.into());
    }
    let mut making = arguments.making;
    making.imatrix = making.imatrix.or_else(|| planned.and_then(Chosen::imatrix));
    let goal = Goal { format, scheme, options };
    forge(&shop, goal, making, chosen.as_ref()).await
}

/// The format whose scheme this is, as the plugins say.
fn format_of(shop: &Workshop, scheme: &str) -> Result<String> {
    let reports = shop.catalog.plugins().iter().filter_map(|plugin| plugin.report.as_ref()?.as_ref().ok());
    let makes = |format: &&drophammer_sdk::FormatSupport| {
        format.make && format.schemes.iter().any(|known| known == scheme)
    };
    let mut formats: Vec<String> = reports
        .flat_map(|report| &report.formats)
        .filter(makes)
        .map(|format| format.format.clone())
        .collect();
    formats.sort();
    formats.dedup();
    match formats.as_slice() {
        [format] => Ok(format.clone()),
        [] => {
            let message = format!("no plugin here knows the scheme {scheme}");
            Err(Failure::new(
                Exit::Unsupported,
                message,
                "`drophammer doctor` lists the schemes of each plugin",
            ))
        }
        several => {
            let message = format!("the scheme {scheme} exists for {}", several.join(", "));
            Err(Failure::new(Exit::Usage, message, "say which with --to"))
        }
    }
}

/// Makes the artifact; `chosen` is written beside it.
async fn forge(shop: &Workshop, mut goal: Goal, mut making: Making, chosen: Option<&Chosen>) -> Result<()> {
    goal.options.extend(making.extras.options.iter().cloned());
    let Making { no_tokenizer, compensate, awq, .. } = making;
    for (asked, option) in [(no_tokenizer, "no_tokenizer"), (compensate, "compensate"), (awq, "awq")] {
        if asked {
            goal.options.insert(option.to_owned(), true.into());
        }
    }
    if (compensate || awq) && !INFORMED.contains(&goal.format.as_str()) {
        let message =
            format!("--compensate and --awq are there for {}, not {}", INFORMED.join(" and "), goal.format);
        return Err(Failure::new(Exit::Usage, message, "go without them"));
    }
    if let Some(path) = &making.calibration {
        let path = std::path::absolute(path).map_err(|error| Failure::io(path, &error))?;
        if !path.exists() {
            let message = format!("--calibration {}: there is nothing", path.display());
            return Err(Failure::new(Exit::Usage, message, "check the path"));
        }
        goal.options.insert("calibration".to_owned(), path.display().to_string().into());
    }
    let source = std::path::absolute(&making.source).map_err(|error| Failure::io(&making.source, &error))?;
    let maker = shop.maker(&goal.format, making.budget.backend.as_deref())?;
    let estimate = estimate(shop, maker, &source, &goal).await?;
    let scheme = estimate.scheme.clone();
    eprintln!(
        "{scheme}: {} to write, with at most {} of memory",
        size(estimate.bytes),
        size(estimate.peak_memory_bytes)
    );
    if making.dry_run {
        print(&dry(&estimate));
        return Ok(());
    }
    let staging = Staging::beside(&making.output)?;
    check_disk(staging.path(), estimate.bytes)?;
    // A plan brings the statistics that it was made from.
    let wanted = making.auto_imatrix && making.imatrix.is_none();
    let collected = wanted.then(calibrate::temporary).transpose()?;
    if let Some(place) = &collected {
        making.imatrix = Some(calibrate::automatic(shop, &making, place.path()).await?);
    }
    let request = ForgeRequest {
        source,
        goal: Goal { scheme: scheme.clone(), ..goal },
        staging: staging.path().to_path_buf(),
        name: staging.name(),
        imatrix: making
            .imatrix
            .map(std::path::absolute)
            .transpose()
            .map_err(|e| Failure::io("imatrix".as_ref(), &e))?,
        adapters: making.extras.adapters()?,
        no_tokenizer: making.no_tokenizer,
    };
    let planned = request.goal.format == calibrate::FORMAT;
    let reports_only = request.goal.options.get("dry_run").is_some_and(|only| only == true);
    let limits = shop.limits(&making.budget);
    let finished = shop.work(maker, limits, Work::forge(request), making.budget.verbose).await?;
    let Outcome::Forged(report) = finished.outcome else {
        return Err(Failure::new(Exit::Failed, "the worker answered with something else", "report this"));
    };
    if reports_only {
        print(&(types(&report) + &notes(&report.notes)));
        return Ok(());
    }
    let path = staging.publish(&report)?;
    if let Some(chosen) = chosen {
        chosen.save(&path)?;
    }
    eprint!("{}", notes(&report.notes));
    if let Some(chosen) = chosen {
        print(&if planned { chosen.summary() } else { types(&report) });
    }
    print(&format!(
        "{}: {scheme}, {}, {} bits per weight, peak memory {}\n",
        path.display(),
        size(report.bytes),
        maybe(Some(report.bits_per_weight), 2),
        finished.peak_memory_bytes.map_or_else(|| "unknown".to_owned(), size),
    ));
    Ok(())
}

/// What would be done, beyond how large it gets.
fn dry(estimate: &Estimate) -> String {
    let steps = estimate.steps.iter().map(|step| format!("  {step}\n"));
    let time = format!("about {:.0} s\n", estimate.seconds.ceil());
    steps.chain([time, notes(estimate.reason.as_slice())]).collect()
}

fn notes(notes: &[String]) -> String {
    notes.iter().fold(String::new(), |text, note| text + "note: " + note + "\n")
}

/// How many tensors are stored in which way.
fn types(report: &ForgeReport) -> String {
    report
        .types
        .iter()
        .fold(String::new(), |text, (name, count)| format!("{text}  {count:4} tensors as {name}\n"))
}

/// What the backend says about this goal before any work starts.
async fn estimate(
    shop: &Workshop,
    maker: &Installed,
    source: &std::path::Path,
    goal: &Goal,
) -> Result<Estimate> {
    let request = ProbeRequest { source: Some(source.to_path_buf()), goals: vec![goal.clone()] };
    let report = maker.probe(&shop.supervisor, shop.host(&maker.id()), request).await.transpose()?;
    let estimate = report.and_then(|report| report.estimates.into_iter().next());
    let Some(estimate) = estimate else {
        let message = format!("the plugin {} does not say whether it can do this", maker.id());
        return Err(Failure::new(Exit::Unsupported, message, "update the plugin, or use another --backend"));
    };
    if !estimate.supported {
        let goal = format!("{} {}", goal.format, goal.scheme);
        let reason = estimate.reason.unwrap_or_else(|| "no reason given".to_owned());
        let message = format!("{} cannot be made into {}: {reason}", source.display(), goal.trim());
        return Err(Failure::new(Exit::Unsupported, message, estimate.help.unwrap_or_default()));
    }
    Ok(estimate)
}

/// Refuses work whose result would not fit.
fn check_disk(place: &std::path::Path, bytes: u64) -> Result<()> {
    let needed = drophammer_engine::plan::disk_needed(bytes);
    let free = drophammer_daemon::hardware::free_disk(place);
    if free.is_some_and(|free| free < needed) {
        let message = format!(
            "{}: the result needs {} of disk, {} are free",
            place.parent().unwrap_or(place).display(),
            size(needed),
            size(free.unwrap_or(0))
        );
        return Err(Failure::new(Exit::Failed, message, "free some space, or write elsewhere with --output"));
    }
    Ok(())
}
