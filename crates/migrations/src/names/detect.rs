//! Whose names a folder uses, told from all of them together. What two tools read differently is not guessed.

use super::layouts::{any_numbered, direction, popx, refinery};
use super::name::{Dialect, Direction};
use super::{Names, flyway};

/// What a single name can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// `V1__name`: refinery's or Flyway's, which run it alike.
    V,
    /// `V1__name.down`: only ours, beside refinery's.
    VDown,
    /// `U1__name`: forward for refinery, back for Flyway.
    U,
    /// What only Flyway understands.
    Flyway,
    /// What only popx understands.
    Popx,
    /// `1_name.up` and `.down`.
    UpDown,
    /// `1_name`.
    Simple,
    /// A number and a name in some other way.
    Numbered,
    /// `NAME/up.sql`, or `down.sql`.
    Up,
    /// `NAME/migration.sql`.
    Migration,
}

/// Finds out whose names these are.
pub fn detect(files: &[&str]) -> Result<Names, String> {
    let sorts: Vec<(&str, Sort)> = files.iter().filter_map(|file| Some((*file, sort(file)?))).collect();
    let one = |wanted: &[Sort]| sorts.iter().find(|(_, sort)| wanted.contains(sort)).map(|(file, _)| *file);
    let families = [
        (one(&[Sort::V, Sort::VDown, Sort::U, Sort::Flyway]), "refinery or Flyway"),
        (one(&[Sort::Popx, Sort::UpDown, Sort::Simple]), "golang-migrate, sqlx or popx"),
        (one(&[Sort::Up, Sort::Migration]), "Diesel or Prisma"),
    ];
    // Beside names of a known tool another number is more likely a slip, and is told as one.
    if families.iter().all(|(file, _)| file.is_none()) && one(&[Sort::Numbered]).is_some() {
        return Ok(Names::Numbered);
    }
    let mut present = families.iter().filter_map(|(file, tool)| Some(((*file)?, *tool)));
    let (first, second) = (present.next(), present.next());
    match (first, second) {
        (None, _) => return Err("no file has a name that one of the known tools uses".into()),
        (Some((a, for_a)), Some((b, for_b))) => {
            return Err(format!("`{a}` is named for {for_a} and `{b}` for {for_b}"));
        }
        _ => {}
    }
    if families[0].0.is_some() {
        return versions(&sorts);
    }
    if families[2].0.is_some() {
        return match (one(&[Sort::Migration]), sorts.iter().find(|(file, _)| file.ends_with("/up.sql"))) {
            (Some(a), Some((b, _))) => Err(format!("`{a}` is named for Prisma and `{b}` for Diesel")),
            (Some(_), None) => Ok(Names::Prisma),
            _ => Ok(Names::Diesel),
        };
    }
    match (one(&[Sort::Popx]), one(&[Sort::Simple])) {
        (Some(a), Some(b)) => Err(format!("`{a}` is named for popx and `{b}` for sqlx")),
        (Some(_), None) => Ok(Names::Popx),
        (None, Some(_)) => Ok(Names::Sqlx),
        (None, None) => Ok(Names::GolangMigrate),
    }
}

/// refinery or Flyway.
fn versions(sorts: &[(&str, Sort)]) -> Result<Names, String> {
    let one = |wanted: Sort| sorts.iter().find(|(_, sort)| *sort == wanted).map(|(file, _)| *file);
    let number = |file: &str| Some(flyway::parse(base(file).strip_suffix(".sql")?).ok()?.number);
    let undoes = |file: &str| {
        sorts.iter().any(|(other, sort)| {
            matches!(sort, Sort::V | Sort::Flyway)
                && !base(other).starts_with('B')
                && number(other) == number(file)
        })
    };
    let undo = sorts.iter().filter(|(_, sort)| *sort == Sort::U).map(|(file, _)| *file).find(|f| undoes(f));
    match (one(Sort::Flyway).or(undo), one(Sort::VDown), one(Sort::U)) {
        (Some(a), Some(b), _) => Err(format!("`{a}` is named for Flyway and `{b}` for refinery")),
        (Some(_), None, _) => Ok(Names::Flyway),
        (None, None, Some(u)) => Err(format!(
            "`{u}` takes something back if these are Flyway's, and goes forward if they are refinery's; write `names: flyway` or `names: refinery`"
        )),
        (None, _, _) => Ok(Names::Refinery),
    }
}

fn base(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file)
}

fn sort(file: &str) -> Option<Sort> {
    if let Some((_, name)) = file.rsplit_once('/') {
        match name {
            "up.sql" | "down.sql" => return Some(Sort::Up),
            "migration.sql" => return Some(Sort::Migration),
            _ => {}
        }
    }
    let stem = base(file).strip_suffix(".sql")?;
    if let Ok(name) = refinery(stem) {
        return Some(match (stem.starts_with('U'), name.direction) {
            (_, Direction::Down) => Sort::VDown,
            (true, Direction::Up) => Sort::U,
            (false, Direction::Up) => Sort::V,
        });
    }
    if flyway::parse(stem).is_ok_and(|name| stem.contains("__") || name.title.is_empty()) {
        return Some(Sort::Flyway);
    }
    if let Ok(name) = popx(stem) {
        let only = name.dialect != Dialect::Any || name.autocommit || name.number.parse::<u64>().is_err();
        return Some(if only { Sort::Popx } else { Sort::UpDown });
    }
    let name = any_numbered(stem).ok()?;
    let (bare, directed) = direction(stem).map_or((stem, false), |(bare, _)| (bare, true));
    let simple = bare.strip_prefix(name.number.as_str()).is_some_and(|rest| rest.starts_with('_'));
    Some(match (simple, directed) {
        (true, true) => Sort::UpDown,
        (true, false) => Sort::Simple,
        _ => Sort::Numbered,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_told_apart() {
        assert_eq!(detect(&["V1__a.sql", "V2__b.sql"]), Ok(Names::Refinery));
        assert_eq!(detect(&["1_a.up.sql", "1_a.down.sql"]), Ok(Names::GolangMigrate));
        assert_eq!(detect(&["1_a.sql", "2_b.up.sql", "2_b.down.sql"]), Ok(Names::Sqlx));
        assert_eq!(detect(&["1_a.up.sql", "1_a.mysql.up.sql"]), Ok(Names::Popx));
        assert_eq!(detect(&["20150101000001000000_a.up.sql"]), Ok(Names::Popx));
        assert_eq!(detect(&["V1__a.sql", "V1__a.down.sql", "U3__b.sql"]), Ok(Names::Refinery));
        assert_eq!(detect(&["V1__a.sql", "V3__b.sql", "U3__b.sql"]), Ok(Names::Flyway));
        assert_eq!(detect(&["V1__a.sql", "R__b.sql", "U3__b.sql"]), Ok(Names::Flyway));
        assert_eq!(detect(&["V1.1__a.sql"]), Ok(Names::Flyway));
        assert_eq!(detect(&["V1__a b.sql"]), Ok(Names::Flyway));
        assert_eq!(detect(&["core/V1__a.sql", "more/V2__b.sql"]), Ok(Names::Refinery));
        assert_eq!(
            detect(&["2018-01-01-000000_a/up.sql", "2018-01-01-000000_a/down.sql"]),
            Ok(Names::Diesel)
        );
        assert_eq!(detect(&["20200101000000_a/migration.sql"]), Ok(Names::Prisma));
        assert_eq!(detect(&["0001-a.sql", "0002-b.sql"]), Ok(Names::Numbered));
        assert_eq!(detect(&["V0001.A.up.sql", "V0001.A.down.sql"]), Ok(Names::Numbered));
        let unclear = detect(&["V1__a.sql", "U3__b.sql"]).unwrap_err();
        assert!(unclear.contains("U3__b.sql") && unclear.contains("flyway"), "{unclear}");
        assert!(detect(&["V1__a.down.sql", "V1.1__b.sql"]).is_err());
        assert!(detect(&["20200101000000_a/migration.sql", "1_b.sql"]).is_err());
        assert_eq!(detect(&["0001-a.sql", "V2__b.sql"]), Ok(Names::Refinery));
        assert!(detect(&["V1__a.sql", "1_a.up.sql"]).is_err());
        assert!(detect(&["1_a.sql", "1_a.mysql.up.sql"]).is_err());
        assert!(detect(&["schema.sql"]).is_err());
        assert!(detect(&[]).is_err());
    }
}
