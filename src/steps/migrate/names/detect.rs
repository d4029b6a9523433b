//! Whose names a folder uses, told from all of them together. What two tools read differently is not guessed.

use super::{Dialect, Direction, Names, any_numbered, direction, flyway, popx, refinery};

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
pub(super) fn detect(files: &[&str]) -> Result<Names, String> {
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
