//! The database's versions. Each step brings it from the version of its index to the next; none is ever changed.

use rusqlite::Connection;

const STEPS: &[&str] = &["CREATE TABLE models (name TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
     CREATE TABLE jobs (id INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, record TEXT NOT NULL);
     CREATE TABLE logs (id INTEGER PRIMARY KEY AUTOINCREMENT, job INTEGER NOT NULL, line TEXT NOT NULL);
     CREATE INDEX logs_by_job ON logs (job, id);"];

/// The version this program writes.
pub(super) const NEWEST: i64 = STEPS.len() as i64;

/// Brings the database up to date; returns the version it had, when that is newer than [`NEWEST`] and it was left
/// alone, or [`NEWEST`].
pub(super) fn apply(connection: &mut Connection) -> rusqlite::Result<i64> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > NEWEST {
        return Ok(found);
    }
    let transaction = connection.transaction()?;
    for step in STEPS.iter().skip(found.max(0) as usize) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", NEWEST)?;
    transaction.commit()?;
    Ok(NEWEST)
}
