//! The forge's lines: models, and under each unfolded model its jobs.

use std::collections::HashMap;

use drophammer_client::api::{Job, JobState};

use crate::mirror::Mirror;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ForgeRow {
    /// A model's heading.
    Model { name: String, open: bool, count: Counts },
    /// A job, by its place in the mirror.
    Job(usize),
}

/// A model's jobs in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) queued: usize,
    pub(crate) running: usize,
    pub(crate) failed: usize,
    pub(crate) blocked: usize,
    pub(crate) all: usize,
}

/// Lines for what the mirror holds. Models with unfinished jobs come first, then the newest. A model is
/// open while its jobs are unfinished unless `folds` says otherwise, and always while filtering.
pub(crate) fn rows(mirror: &Mirror, filter: &str, folds: &HashMap<String, bool>) -> Vec<ForgeRow> {
    let filter = filter.to_lowercase();
    let mut groups: HashMap<&str, Group> = HashMap::new();
    for name in mirror.models.keys() {
        groups.entry(name).or_default();
    }
    for (place, job) in mirror.jobs().iter().enumerate() {
        groups.entry(&job.model).or_default().add(place, job);
    }
    let mut groups: Vec<(&str, Group)> = groups.into_iter().collect();
    groups.sort_by(|(a, one), (b, other)| {
        other.busy.cmp(&one.busy).then(other.newest.total_cmp(&one.newest)).then(a.cmp(b))
    });
    let mut rows = Vec::new();
    for (name, group) in groups {
        let model_matches = filter.is_empty() || contains(name, &filter);
        let jobs: Vec<usize> = group
            .jobs
            .iter()
            .copied()
            .filter(|place| model_matches || matches(&mirror.jobs()[*place], &filter))
            .collect();
        if !model_matches && jobs.is_empty() {
            continue;
        }
        let open = !filter.is_empty() || folds.get(name).copied().unwrap_or(group.busy);
        rows.push(ForgeRow::Model { name: name.to_owned(), open, count: group.counts });
        if open {
            rows.extend(jobs.into_iter().map(ForgeRow::Job));
        }
    }
    rows
}

#[derive(Default)]
struct Group {
    jobs: Vec<usize>,
    counts: Counts,
    busy: bool,
    newest: f64,
}

impl Group {
    fn add(&mut self, place: usize, job: &Job) {
        self.jobs.push(place);
        self.counts.all += 1;
        match job.state {
            JobState::Queued => self.counts.queued += 1,
            JobState::Running => self.counts.running += 1,
            JobState::Failed => self.counts.failed += 1,
            JobState::Blocked => self.counts.blocked += 1,
            JobState::Succeeded | JobState::Cancelled => {}
        }
        self.busy |= !job.state.is_finished();
        self.newest = self.newest.max(job.created);
    }
}

fn matches(job: &Job, filter: &str) -> bool {
    let words = [&job.target, &job.backend, &job.device, &job.format, &job.scheme];
    words.into_iter().flatten().any(|word| contains(word, filter))
        || contains(job.state.as_str(), filter)
        || job.stage.as_str() == filter
}

/// Whether `text` contains the lower-case `filter`, ignoring ASCII case: without allocating, since it
/// is asked for every job at every key.
fn contains(text: &str, filter: &str) -> bool {
    filter.is_empty()
        || text.as_bytes().windows(filter.len()).any(|part| part.eq_ignore_ascii_case(filter.as_bytes()))
}
