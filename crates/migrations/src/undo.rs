//! Takes back what this run applied: the down files, newest first.

use crate::folder::Migration;
use crate::history::{self, Row};
use crate::tail::{Tail, down_key, up_key};
use crate::worker::Worker;
use handover_core::error::{Error, Result};
use handover_postgres::ours::OURS;

impl Worker<'_> {
    /// Takes back every migration that this run applied or began. What earlier runs applied stays.
    ///
    /// `run_files`: whether the down files are executed; if not, only the history forgets.
    ///
    /// # Errors
    /// A down file that is missing or fails.
    pub async fn undo_all(&mut self, files: &[Migration], run_files: bool) -> Result<Vec<String>> {
        let rows = history::read(&self.session, &self.table).await?;
        if rows.iter().any(|row| row.run == self.port.run && row.vendor.is_some()) {
            self.look_at_vendors(files).await?;
        }
        let mut undone = Vec::new();
        for file in self.half_done(files, &rows).await? {
            let tail = Tail::Forgotten { version: None, file, vendor: false, previous: None };
            self.undo_one(&tail, file, run_files, true).await?;
            undone.push(file.file.clone());
        }
        for (i, row) in rows.iter().enumerate().rev().filter(|(_, row)| row.run == self.port.run) {
            let file =
                files.iter().find(|f| f.folder == row.folder && f.number == row.number).ok_or_else(|| {
                    Error::data(format!(
                        "the migration {} is to be taken back, and its file is gone",
                        row.key()
                    ))
                    .on_database(&self.step.on)
                    .hint("put the file and its down file back, then continue the rollback")
                })?;
            let before = rows.iter().take(i).rev().find(|before| before.folder == row.folder);
            let tail = Tail::Forgotten {
                version: Some(row.version),
                file,
                vendor: row.vendor.is_some(),
                previous: before.map(|before| before.number.as_str()),
            };
            self.undo_one(&tail, file, run_files && !row.baseline, false).await?;
            undone.push(file.file.clone());
        }
        let tx = self.session.transaction().await?;
        tx.forget_checkpoints(self.port.run, &self.port.step).await?;
        tx.commit().await?;
        Ok(undone)
    }

    /// Files that run step by step and were begun without being completed.
    async fn half_done<'f>(&self, files: &'f [Migration], rows: &[Row]) -> Result<Vec<&'f Migration>> {
        let begun = self
            .session
            .query(
                &format!("select unit from {OURS}.checkpoint where run = $1 and step = $2"),
                &[&self.port.run.0, &self.port.step.as_str()],
            )
            .await?;
        let begun: Vec<String> = begun.iter().map(|row| row.get(0)).collect();
        Ok(files
            .iter()
            .rev()
            .filter(|f| !rows.iter().any(|r| r.folder == f.folder && r.number == f.number))
            .filter(|f| begun.contains(&up_key(f)))
            .collect())
    }

    async fn undo_one(
        &mut self,
        tail: &Tail<'_>,
        file: &Migration,
        run_files: bool,
        half_done: bool,
    ) -> Result<()> {
        let down = match &file.down {
            Some(down) if run_files => down,
            None if run_files => {
                return Err(Error::data(format!("the migration {} has no down file", file.key()))
                    .on_database(&self.step.on)
                    .hint("add one under `override:`, named like the migration with `down` for `up`, then continue the rollback"));
            }
            _ => return self.together(&file.up, &[], tail, false).await,
        };
        self.prepare().await?;
        if down.stepwise.is_some() {
            self.stepwise(down, &down_key(file), half_done).await?;
            self.together(down, &[], tail, half_done).await?;
        } else {
            let statements = down.units.first().map_or(&[][..], |unit| unit.statements());
            self.together(down, statements, tail, half_done).await?;
        }
        self.renew(down).await
    }
}
