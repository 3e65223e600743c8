//! Versions of programs that work together.

/// Whether a runner may take tasks of a server: releases of one major version whose minor versions differ by one at
/// most (execution §25), so that a server and its runners are updated one after another, in either order.
///
/// # Errors
/// It may not: why, and what is to be done.
pub fn fit(server: &str, runner: &str) -> Result<(), String> {
    let known = |version: &str| {
        parse(version).ok_or_else(|| format!("`{version}` is no version: numbers such as 1.2.3 are"))
    };
    let (ours, theirs) = (known(server)?, known(runner)?);
    if ours.0 == theirs.0 && ours.1.abs_diff(theirs.1) <= 1 {
        return Ok(());
    }
    let (what, program) = if theirs < ours { ("older", "gantry-runner") } else { ("newer", "the server") };
    Err(format!(
        "the runner is {what} ({runner}) than what this server ({server}) works with, one minor version apart at most: \
         update {program}"
    ))
}

/// Major and minor version.
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::fit;

    #[test]
    fn one_minor_version_apart_is_near_enough() {
        for (server, runner) in [
            ("1.4.0", "1.4.9"),
            ("1.4.0", "1.3.7"),
            ("1.4.0", "1.5.0-rc.1"),
            ("0.1.0", "0.1.0"),
            ("1.4.0", "1.4"),
        ] {
            assert_eq!(fit(server, runner), Ok(()), "{server} {runner}");
        }
        for (server, runner, part) in [
            ("1.4.0", "1.2.9", "update gantry-runner"),
            ("2.0.0", "1.9.0", "update gantry-runner"),
            ("1.4.0", "1.6.0", "update the server"),
            ("1.4.0", "2.4.0", "update the server"),
            ("1.4.0", "", "`` is no version"),
            ("1.4.0", "new", "`new` is no version"),
        ] {
            assert!(fit(server, runner).is_err_and(|said| said.contains(part)), "{server} {runner}");
        }
    }
}
