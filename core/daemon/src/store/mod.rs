//! What the daemon remembers across its own end: models, jobs and logs, in one SQLite file.
//!
//! SQLite in WAL mode survives a `kill -9` at any moment: a change is there in whole or not at all. Records are JSON
//! documents beside the columns they are found by; [`migrations`] bring an older file up to date. Artifacts are not in
//! here: the library's own manifests are their only record, so there is nothing that could disagree with it.

mod migrations;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use drophammer_client::api::LogLine;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ledger::{JobRecord, ModelRecord};

/// A failure of the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite's own.
    #[error("database {path}: {source}")]
    Sqlite {
        /// The file.
        path: String,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The file was written by a newer version.
    #[error("database {path} is of version {found}, this program knows {known}: use the newer program")]
    Newer {
        /// The file.
        path: String,
        /// Its version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
}

/// The database.
#[derive(Debug)]
pub struct Store {
    path: String,
    connection: Mutex<Connection>,
}

/// Everything remembered.
#[derive(Debug, Default)]
pub struct Remembered {
    /// Models by name.
    pub models: Vec<ModelRecord>,
    /// Jobs by id.
    pub jobs: Vec<JobRecord>,
}

impl Store {
    /// Opens or makes the database at `path`.
    ///
    /// # Errors
    /// When it cannot be opened, or a newer version wrote it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let name = path.display().to_string();
        let failed = |source| StoreError::Sqlite { path: name.clone(), source };
        let mut connection = Connection::open(path).map_err(failed)?;
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 5000;
                 PRAGMA cache_size = -512; PRAGMA journal_size_limit = 4194304;",
            )
            .map_err(failed)?;
        let found = migrations::apply(&mut connection).map_err(failed)?;
        if found > migrations::NEWEST {
            return Err(StoreError::Newer { path: name, found, known: migrations::NEWEST });
        }
        Ok(Self { path: name, connection: Mutex::new(connection) })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic while the lock was held rolled its transaction back: the connection is sound.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> impl Fn(rusqlite::Error) -> StoreError + '_ {
        |source| StoreError::Sqlite { path: self.path.clone(), source }
    }

    /// Reads everything but logs. Records that this version cannot read are left out.
    ///
    /// # Errors
    /// SQLite's.
    pub fn remembered(&self) -> Result<Remembered, StoreError> {
        let connection = self.lock();
        let jobs = records(&connection, "SELECT record FROM jobs ORDER BY id").map_err(self.failed())?;
        let models =
            records(&connection, "SELECT record FROM models ORDER BY name").map_err(self.failed())?;
        Ok(Remembered { models, jobs })
    }

    /// The id of the next new job: ids are never used twice, even for forgotten jobs.
    ///
    /// # Errors
    /// SQLite's.
    pub fn next_job_id(&self) -> Result<u64, StoreError> {
        let sql = "SELECT seq FROM sqlite_sequence WHERE name = 'jobs'";
        let last: Option<i64> =
            self.lock().query_row(sql, [], |row| row.get(0)).optional().map_err(self.failed())?;
        Ok(last.unwrap_or(0).unsigned_abs() + 1)
    }

    /// Writes a job, new or changed.
    ///
    /// # Errors
    /// SQLite's.
    pub fn save_job(&self, job: &JobRecord) -> Result<(), StoreError> {
        let sql = "INSERT INTO jobs (id, model, record) VALUES (?1, ?2, ?3)
                   ON CONFLICT (id) DO UPDATE SET model = excluded.model, record = excluded.record";
        self.execute(sql, params![job.id as i64, job.model, json(job)])
    }

    /// Forgets a job and its log.
    ///
    /// # Errors
    /// SQLite's.
    pub fn delete_job(&self, id: u64) -> Result<(), StoreError> {
        self.execute("DELETE FROM logs WHERE job = ?1", params![id as i64])?;
        self.execute("DELETE FROM jobs WHERE id = ?1", params![id as i64])
    }

    /// Writes a model, new or changed.
    ///
    /// # Errors
    /// SQLite's.
    pub fn save_model(&self, model: &ModelRecord) -> Result<(), StoreError> {
        let sql = "INSERT INTO models (name, record) VALUES (?1, ?2)
                   ON CONFLICT (name) DO UPDATE SET record = excluded.record";
        self.execute(sql, params![model.name, json(model)])
    }

    /// Forgets a model.
    ///
    /// # Errors
    /// SQLite's.
    pub fn delete_model(&self, name: &str) -> Result<(), StoreError> {
        self.execute("DELETE FROM models WHERE name = ?1", params![name])
    }

    /// Appends lines to the logs of their jobs, and drops each job's oldest above `keep`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn append_log(&self, lines: &[(u64, LogLine)], keep: usize) -> Result<(), StoreError> {
        let mut connection = self.lock();
        let mut append = || {
            let transaction = connection.transaction()?;
            for (job, line) in lines {
                transaction
                    .prepare_cached("INSERT INTO logs (job, line) VALUES (?1, ?2)")?
                    .execute(params![*job as i64, json(line)])?;
            }
            let mut jobs: Vec<u64> = lines.iter().map(|(job, _)| *job).collect();
            jobs.sort_unstable();
            jobs.dedup();
            for job in jobs {
                let sql = "DELETE FROM logs WHERE job = ?1 AND id <= (
                               SELECT id FROM logs WHERE job = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)";
                transaction.prepare_cached(sql)?.execute(params![job as i64, keep as i64])?;
            }
            transaction.commit()
        };
        append().map_err(self.failed())
    }

    /// A job's remembered lines, oldest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn log(&self, job: u64) -> Result<Vec<LogLine>, StoreError> {
        let connection = self.lock();
        let read = || {
            let mut statement =
                connection.prepare_cached("SELECT line FROM logs WHERE job = ?1 ORDER BY id")?;
            let lines = statement.query_map(params![job as i64], |row| row.get::<_, String>(0))?;
            lines.collect::<rusqlite::Result<Vec<_>>>()
        };
        let lines: Vec<String> = read().map_err(self.failed())?;
        Ok(lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    fn execute(&self, sql: &str, values: impl rusqlite::Params) -> Result<(), StoreError> {
        let connection = self.lock();
        let done = connection.prepare_cached(sql).and_then(|mut statement| statement.execute(values));
        done.map(drop).map_err(self.failed())
    }
}

fn records<T: DeserializeOwned>(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<T>> {
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    let texts = rows.collect::<rusqlite::Result<Vec<String>>>()?;
    let read = |text: &String| match serde_json::from_str(text) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::warn!(%error, "a record of another version is left out");
            None
        }
    };
    Ok(texts.iter().filter_map(read).collect())
}

/// Our own records always have a JSON form.
fn json<T: Serialize>(record: &T) -> String {
    serde_json::to_string(record).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use drophammer_client::api::{LogLevel, LogSource};
    use drophammer_engine::job::{Event, Kind};

    use super::*;

    fn line(sequence: u64) -> LogLine {
        LogLine {
            sequence,
            time: 1.0,
            job: Some("1".into()),
            level: LogLevel::Info,
            source: LogSource::Daemon,
            message: format!("line {sequence}"),
        }
    }

    #[test]
    fn what_was_saved_is_remembered_by_the_next_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        let store = Store::open(&path).unwrap();
        let mut job = JobRecord::new(store.next_job_id().unwrap(), "m", Kind::Forge, 5.0);
        store.save_job(&job).unwrap();
        job.life = job.life.after(Event::Start).unwrap();
        store.save_job(&job).unwrap();
        store.save_model(&ModelRecord::new("m", "/models/m".into())).unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        let remembered = store.remembered().unwrap();
        assert_eq!((remembered.jobs.len(), remembered.models.len()), (1, 1));
        assert_eq!(remembered.jobs[0].life, job.life);
        assert_eq!(store.next_job_id().unwrap(), 2);
        store.delete_job(1).unwrap();
        assert_eq!(store.next_job_id().unwrap(), 2, "an id is never used twice");
    }

    #[test]
    fn a_jobs_log_is_bounded_and_goes_with_the_job() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("a.db")).unwrap();
        let lines: Vec<_> = (0..50).map(|n| (1, line(n))).collect();
        store.append_log(&lines, 10).unwrap();
        store.append_log(&[(2, line(99))], 10).unwrap();
        let kept: Vec<u64> = store.log(1).unwrap().iter().map(|line| line.sequence).collect();
        assert_eq!(kept, (40..50).collect::<Vec<_>>());
        store.delete_job(1).unwrap();
        assert_eq!((store.log(1).unwrap().len(), store.log(2).unwrap().len()), (0, 1));
    }

    #[test]
    fn a_database_of_a_newer_version_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        drop(Store::open(&path).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(Store::open(&path), Err(StoreError::Newer { found: 99, .. })));
    }
}
