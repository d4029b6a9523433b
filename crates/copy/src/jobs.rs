//! How many pieces are copied at once, when the plan does not say.

use crate::options::Copy;
use handover_core::error::Result;
use handover_postgres::Session;

/// Where a Linux server lists its cores, as ranges of numbers.
const ONLINE: &str = "/sys/devices/system/cpu/online";
/// More than this is for an operator to decide: blue serves others meanwhile.
const MOST: usize = 16;

/// A number of jobs, and why it is that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jobs {
    /// How many.
    pub number: usize,
    /// Where it comes from, in words.
    pub from: String,
}

/// The plan's number, or that of the cores of the server that has fewer. A role that may not read a server's files
/// cannot know those; then it is as if that server had as many as this machine.
///
/// # Errors
/// What a server says.
pub async fn choose(copy: &Copy, blue: &Session, green: &Session) -> Result<Jobs> {
    if let Some(number) = copy.jobs {
        return Ok(Jobs { number: number.max(1), from: "as the plan says".into() });
    }
    let here = std::thread::available_parallelism().map_or(2, usize::from);
    let words = |name: &str, cores: Option<usize>| match cores {
        Some(cores) => format!("{name} has {cores} cores"),
        None => format!("{name}'s cores are not told to this role, this machine has {here}"),
    };
    let (left, right) = (cores(blue).await?, cores(green).await?);
    Ok(Jobs {
        number: left.unwrap_or(here).min(right.unwrap_or(here)).clamp(1, MOST),
        from: format!("{}, {}", words(&copy.from, left), words(&copy.to, right)),
    })
}

/// A server's cores, where a role may read its files (superusers and members of `pg_read_server_files` with EXECUTE
/// on `pg_read_file`, <https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-GENFILE>).
async fn cores(session: &Session) -> Result<Option<usize>> {
    let may = "select has_function_privilege('pg_read_file(text, bigint, bigint, boolean)', 'execute')
               and (pg_has_role('pg_read_server_files', 'member') or (select rolsuper from pg_roles where rolname = current_user))";
    if !session.query_one(may, &[]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    let read = "select pg_read_file($1, 0, 4096, true)";
    let text: Option<String> = session.query_one(read, &[&ONLINE]).await?.get(0);
    Ok(text.as_deref().and_then(count))
}

/// Counts the numbers in a list such as `0-3,8`.
fn count(list: &str) -> Option<usize> {
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        (last.parse::<usize>().ok()? + 1).checked_sub(first.parse().ok()?)
    };
    list.trim().split(',').map(range).sum::<Option<usize>>().filter(|n| *n > 0)
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn cores_are_counted_as_linux_lists_them() {
        for (list, cores) in
            [("0-3\n", Some(4)), ("0", Some(1)), ("0-1,4-5,9\n", Some(5)), ("", None), ("3-1", None)]
        {
            assert_eq!(count(list), cores, "{list}");
        }
    }
}
