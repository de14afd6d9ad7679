//! Products of activations, for rounding that makes up for its errors: as many matrices at once as memory allows, the text
//! read again for the others, sums on disk until all are there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use drophammer_formats::mapped::MappedFile;
use drophammer_models::Checkpoint;
use drophammer_models::export::gguf::GgufExport;
use drophammer_quant::compensate::Rounds;
use drophammer_quant::importance::{Columns, Importance};
use drophammer_sdk::calibration::Calibrate;
use drophammer_sdk::{JobContext, LogLevel, Result};

use super::calibrate::{Reading, invalid, usage};
use super::{format, io};
use crate::worker::line::WorkerJob;
use crate::worker::protocol::CalibrateOrder;

/// Where sums wait until the file is written.
const SPOOL: &str = "products";

/// What is to be summed, and where it waits.
pub(super) struct Products {
    rounds: Rounds,
    spool: PathBuf,
    job: WorkerJob,
}

impl Products {
    /// Divides the model's matrices into rounds.
    pub(super) fn plan(order: &CalibrateOrder, job: &WorkerJob) -> Result<Self> {
        let place = &order.load.path;
        let checkpoint = Checkpoint::open(place).map_err(|error| invalid(place, &error))?;
        let export = GgufExport::new(checkpoint).map_err(|error| invalid(place, &error))?;
        let rounds = Rounds::plan(export.plain_matrices(), job.budgets().memory_bytes);
        Ok(Self { rounds, spool: order.staging.join(SPOOL), job: job.clone() })
    }

    /// Reads the text once per round. Gives what was counted besides.
    pub(super) fn collect(
        &self,
        bench: &dyn Calibrate,
        reading: &mut Reading<'_>,
    ) -> Result<BTreeMap<String, Columns>> {
        self.job.log(LogLevel::Info, &self.rounds.to_string());
        let failed = |error: &std::io::Error| io(&self.spool, error);
        let mut spool = BufWriter::new(File::create(&self.spool).map_err(|error| failed(&error))?);
        let mut counted = BTreeMap::new();
        for (round, matrices) in self.rounds.iter().enumerate() {
            let names: Vec<String> = matrices.iter().map(|matrix| matrix.name.clone()).collect();
            bench.observe_products(&names)?;
            reading.read(round, self.rounds.count())?;
            if round == 0 {
                counted = usage(bench)?;
            }
            for matrix in matrices {
                // Empty for what met no input: a table that is only looked up.
                let mut sums = bench.products(&matrix.name)?;
                sums.resize(matrix.len(), 0.0);
                let bytes: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
                spool.write_all(&bytes).map_err(|error| failed(&error))?;
            }
        }
        bench.observe(false)?;
        spool.flush().map_err(|error| failed(&error))?;
        Ok(counted)
    }

    /// Writes the statistics with the products behind them.
    pub(super) fn write(self, importance: &Importance, place: &Path) -> Result<()> {
        let sums = MappedFile::open(&self.spool).map_err(format)?;
        let mut rest = sums.bytes();
        let mut products = Vec::new();
        for matrix in self.rounds.iter().flatten() {
            let (own, later) = rest.split_at(rest.len().min(matrix.len() * 4));
            rest = later;
            if importance.matrices.contains_key(&matrix.name) {
                products.push((matrix.name.as_str(), own));
            }
        }
        importance.write_with(place, &products).map_err(|error| invalid(place, &error))?;
        drop(sums);
        std::fs::remove_file(&self.spool).map_err(|error| io(&self.spool, &error))
    }
}
