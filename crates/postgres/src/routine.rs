//! The one way in which routines of ours are made. Postgres lets everybody execute a new function, and who may execute
//! a trigger function may hang it on a table of their own: a SECURITY DEFINER one would then write with our rights what
//! somebody else made up. So the right is taken from PUBLIC in the batch that makes the function. Triggers that are
//! there fire for every writer all the same: only CREATE TRIGGER asks for the right.
//! (<https://www.postgresql.org/docs/current/sql-createtrigger.html>)

use super::ours::OURS;
use super::{TableName, quote_ident, quote_literal};

/// A trigger function in our schema.
#[derive(Debug, Clone, Copy)]
pub struct Routine<'a> {
    /// Its name, without the schema.
    pub name: &'a str,
    /// Whether it acts with our rights, whoever writes.
    pub definer: bool,
    /// Its `SET` clauses, `search_path` among them.
    pub settings: &'a str,
    /// What stands before `begin`: a comment, options of the compiler, declarations.
    pub head: &'a str,
    /// What stands between `begin` and `end`.
    pub body: &'a str,
    /// The tables that its row triggers are on. The owners of those that are partitioned keep the right to execute it:
    /// each new partition gets a trigger of its own, in the name of whoever makes it. They may write the rows anyhow.
    pub tables: &'a [&'a TableName],
}

impl Routine<'_> {
    /// The statements that make it, or replace it, for one batch in a transaction.
    #[must_use]
    pub fn sql(&self) -> String {
        let Routine { name, settings, head, body, .. } = self;
        // A table that nobody else can see is none of those it was made for.
        let guard = if self.definer {
            "if pg_catalog.starts_with(tg_table_schema::pg_catalog.text, 'pg_temp') then
    raise exception 'this function of Handover''s is for its own triggers' using errcode = 'insufficient_privilege';
  end if;
  "
        } else {
            ""
        };
        let text = format!("{head}\nbegin\n  {guard}{body}\nend");
        // A dollar tag that nothing in the body contains.
        let mut tag = "$handover$".to_owned();
        while text.contains(&tag) {
            tag.insert(tag.len() - 1, '_');
        }
        let function = format!("{OURS}.{}()", quote_ident(name));
        let definer = if self.definer { " security definer" } else { "" };
        let mut sql = format!(
            "create or replace function {function} returns trigger language plpgsql{definer} {settings} as {tag}{text}{tag};
             revoke all on function {function} from public;"
        );
        for table in self.tables {
            sql.push_str(&grants(name, table));
        }
        sql
    }
}

/// Lets the owners of a partitioned table and of those below it execute a function.
fn grants(name: &str, table: &TableName) -> String {
    let table = quote_literal(&table.sql());
    let text = format!(
        "declare
           owner pg_catalog.name;
         begin
           for owner in
             select distinct r.rolname from pg_catalog.pg_partition_tree({table}::pg_catalog.regclass) t
             join pg_catalog.pg_class c on c.oid = t.relid join pg_catalog.pg_roles r on r.oid = c.relowner
             where c.relkind = 'p'
           loop
             execute pg_catalog.format('grant execute on function {OURS}.%I() to %I', {}::pg_catalog.text, owner);
           end loop;
         end",
        quote_literal(name)
    );
    format!("\ndo {};", quote_literal(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_may_execute_it_and_its_text_cannot_end_early() {
        let routine = Routine {
            name: "odd name",
            definer: true,
            settings: "set search_path = pg_catalog, pg_temp",
            head: "declare x text;",
            body: "x := '$handover$'; return null;",
            tables: &[],
        };
        let sql = routine.sql();
        assert!(sql.contains("as $handover_$declare x text;\nbegin\n"), "{sql}");
        assert!(sql.contains("\nend$handover_$;"), "{sql}");
        assert!(
            sql.ends_with(&format!("revoke all on function {OURS}.\"odd name\"() from public;")),
            "{sql}"
        );
        assert!(!Routine { definer: false, ..routine }.sql().contains("security definer"));
    }
}
