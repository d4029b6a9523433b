//! The text of the triggers.

use super::moved::{Move, Shape, idents, select};
use crate::table::{Column, Table};
use handover_port::Port;
use handover_postgres::ours::OURS;
use handover_postgres::profile::ROUTINE_FORMAT;
use handover_postgres::routine::Routine;
use handover_postgres::{quote_ident, quote_literal};

impl Move {
    /// The triggers and their functions, which run in the sessions of whoever writes: their `path` has the plan's
    /// schemas between the server's own and the writer's temporary one.
    pub(super) fn triggers(&self, cx: &Port, name: &str, path: &str) -> String {
        let settings = format!("set search_path = {path} {ROUTINE_FORMAT}");
        match &self.shape {
            Shape::Columns(set) => self.same_table(cx, name, &settings, set),
            Shape::Table { target, key, columns } => {
                let mut sql = self.forth(cx, name, &settings, target, key);
                if !self.back.is_empty() {
                    let back = format!("{name}_back");
                    sql.push_str(&self.back(cx, (&back, name), &settings, target, key, columns));
                }
                sql
            }
        }
    }

    fn same_table(&self, cx: &Port, name: &str, settings: &str, set: &[(Column, String)]) -> String {
        let row = |which: &str| format!("from (select {which}.*) as {}", quote_ident(&self.source.name.name));
        let assign: Vec<String> = set
            .iter()
            .enumerate()
            .map(|(i, (c, _))| format!("new.{} := handover_f.f{i};", c.ident()))
            .collect();
        let forth = select(set);
        let mut body = String::new();
        if !self.back.is_empty() {
            let targets = |which: &str| {
                format!("row({})::pg_catalog.text", idents(set, &format!("{which}.")).join(", "))
            };
            let given: Vec<String> = idents(set, "new.").iter().map(|c| format!("{c} is not null")).collect();
            let derive: Vec<String> = self
                .back
                .iter()
                .enumerate()
                .map(|(i, (c, _))| format!("new.{} := handover_f.f{i};", c.ident()))
                .collect();
            // Old code never names the new columns, so a value in an insert, or a change while what they are
            // derived from stays, is the word of new code.
            body = format!(
                "if pg_catalog.current_setting('handover.batch', true) is distinct from 'on' then
                   if tg_op = 'UPDATE' then
                     select {forth} into handover_was {old};
                     select {forth} into handover_f {new};
                     handover_back := handover_was::pg_catalog.text is not distinct from handover_f::pg_catalog.text
                       and {new_values} is distinct from {old_values};
                   else
                     handover_back := {given};
                   end if;
                   if handover_back then
                     select {back} into handover_f {new};
                     {derive}
                     return new;
                   end if;
                 end if;",
                old = row("old"),
                new = row("new"),
                new_values = targets("new"),
                old_values = targets("old"),
                given = given.join(" or "),
                back = select(&self.back),
                derive = derive.join(" "),
            );
        }
        let body = format!(
            "{body}
               select {forth} into handover_f {row} where ({condition}\n);
               if found then {assign} end if;
               return new;",
            row = row("new"),
            condition = self.condition,
            assign = assign.join(" "),
        );
        let function = Routine {
            name,
            definer: false,
            settings,
            head: "#variable_conflict use_column
             declare handover_f record; handover_was record; handover_back boolean;",
            body: &body,
            tables: &[&self.source.name],
        };
        hung(cx, &function, "before insert or update", &self.source)
    }

    /// Old table to new. SECURITY DEFINER: the old code's role need not know the new table.
    fn forth(
        &self,
        cx: &Port,
        name: &str,
        settings: &str,
        target: &Table,
        key: &[(Column, String)],
    ) -> String {
        let row = |which: &str| format!("(select {which}.*) as {}", quote_ident(&self.source.name.name));
        let keys: Vec<String> = key.iter().map(|(_, e)| format!("({e}\n)")).collect();
        let old_key = format!("select {} from {}", keys.join(", "), row("old"));
        let new_key = format!("select {} from {} where ({}\n)", keys.join(", "), row("new"), self.condition);
        let list = idents(key, "handover_t.").join(", ");
        let body = format!(
            "if pg_catalog.current_setting('handover.sync', true) = {marker} then return null; end if;
               perform pg_catalog.set_config('handover.sync', {marker}, true);
               if tg_op = 'DELETE' then
                 delete from {target} as handover_t where ({list}) in ({old_key});
               elsif tg_op = 'UPDATE' then
                 delete from {target} as handover_t where ({list}) in ({old_key}) and ({list}) not in ({new_key});
               end if;
               if tg_op <> 'DELETE' then
                 {upsert};
               end if;
               perform pg_catalog.set_config('handover.sync', '', true);
               return null;",
            marker = quote_literal(name),
            target = target.name.sql(),
            upsert = self.upsert(&row("new"), "true"),
        );
        let function = Routine {
            name,
            definer: true,
            settings,
            head: "#variable_conflict use_column",
            body: &body,
            tables: &[&self.source.name],
        };
        hung(cx, &function, "after insert or update or delete", &self.source)
    }

    /// New table to old. A deleted new row empties the old columns.
    fn back(
        &self,
        cx: &Port,
        (name, marker): (&str, &str),
        settings: &str,
        target: &Table,
        key: &[(Column, String)],
        columns: &[(Column, String)],
    ) -> String {
        let matches = |which: &str| -> String {
            let parts: Vec<String> =
                key.iter().map(|(c, e)| format!("({e}\n) = {which}.{}", c.ident())).collect();
            parts.join(" and ")
        };
        let source = self.source.name.sql();
        let set: Vec<String> = self
            .back
            .iter()
            .enumerate()
            .map(|(i, (c, _))| format!("{} = handover_f.f{i}", c.ident()))
            .collect();
        let differs =
            Self::differs(&self.back, &format!("{}.", quote_ident(&self.source.name.name)), |i, _| {
                format!("handover_f.f{i}")
            });
        let empty: Vec<String> = self.back.iter().map(|(c, _)| format!("{} = null", c.ident())).collect();
        let values = |which: &str| {
            format!("row({})::pg_catalog.text", idents(columns, &format!("{which}.")).join(", "))
        };
        let body = format!(
            "if pg_catalog.current_setting('handover.sync', true) = {marker} or pg_catalog.current_setting('handover.batch', true) = 'on' then
                 return null;
               end if;
               if tg_op = 'UPDATE' and {new_values} is not distinct from {old_values} then return null; end if;
               perform pg_catalog.set_config('handover.sync', {marker}, true);
               if tg_op = 'DELETE' then
                 update {source} set {empty} where {old_matches};
               else
                 select {back} into handover_f from (select new.*) as {target_name};
                 update {source} set {set} where {new_matches} and ({differs});
               end if;
               perform pg_catalog.set_config('handover.sync', '', true);
               return null;",
            marker = quote_literal(marker),
            new_values = values("new"),
            old_values = values("old"),
            empty = empty.join(", "),
            old_matches = matches("old"),
            new_matches = matches("new"),
            back = select(&self.back),
            target_name = quote_ident(&target.name.name),
            set = set.join(", "),
        );
        let function = Routine {
            name,
            definer: true,
            settings,
            head: "#variable_conflict use_column
             declare handover_f record;",
            body: &body,
            tables: &[&target.name],
        };
        hung(cx, &function, "after insert or update or delete", target)
    }
}

/// A function and its trigger on each row of a table, which fires for every writer, also one that applies what is
/// replicated. The comment is the marker by which SQL of ours names a step.
fn hung(cx: &Port, function: &Routine<'_>, events: &str, table: &Table) -> String {
    format!(
        "{function}
         comment on function {OURS}.{name}() is {comment};
         create trigger {name} {events} on {table} for each row execute function {OURS}.{name}();
         alter table {table} enable always trigger {name};",
        function = function.sql(),
        name = quote_ident(function.name),
        comment = quote_literal(&format!("Handover, plan {}, step {}, run {}", cx.plan, cx.step, cx.run)),
        table = table.name.sql(),
    )
}
