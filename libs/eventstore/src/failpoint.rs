//! Named failpoints at the boundaries where a crash hurts (reliability §17).
//!
//! `GANTRY_FAILPOINTS="conductor.commit.before=error:2,scheduler.commit.after=kill"`. Inert unless set.

use crate::Error;
use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

#[derive(Clone, Debug, PartialEq)]
enum Action {
    Kill,
    Panic,
    Delay(Duration),
    Error(u32),
}

fn parse(text: &str) -> HashMap<String, Action> {
    let mut points = HashMap::new();
    for item in text.split([',', ';']).map(str::trim).filter(|item| !item.is_empty()) {
        let Some((name, action)) = item.split_once('=') else { continue };
        let (verb, number) = action.split_once(':').unwrap_or((action, ""));
        let action = match verb {
            "kill" => Action::Kill,
            "panic" => Action::Panic,
            "delay" => Action::Delay(Duration::from_millis(number.parse().unwrap_or(100))),
            "error" => Action::Error(number.parse().unwrap_or(u32::MAX)),
            _ => {
                tracing::warn!(item, "this failpoint is not understood");
                continue;
            }
        };
        points.insert(name.to_owned(), action);
    }
    points
}

static POINTS: LazyLock<Option<Mutex<HashMap<String, Action>>>> =
    LazyLock::new(|| std::env::var("GANTRY_FAILPOINTS").ok().map(|text| Mutex::new(parse(&text))));

/// Does what `GANTRY_FAILPOINTS` says about this point; nothing, unless it is set.
///
/// # Errors
/// The point's action is `error` and its count is not used up.
pub async fn failpoint(name: &str) -> Result<(), Error> {
    let Some(points) = &*POINTS else { return Ok(()) };
    let action = {
        let mut points = points.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(action) = points.get_mut(name) else { return Ok(()) };
        let now = action.clone();
        if let Action::Error(left) = action {
            *left = left.saturating_sub(1);
        }
        now
    };
    match action {
        Action::Kill => std::process::abort(),
        Action::Panic => panic!("failpoint {name}"),
        Action::Delay(time) => tokio::time::sleep(time).await,
        Action::Error(0) => {}
        Action::Error(_) => return Err(Error::Failpoint(name.to_owned())),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_and_nonsense_is_left_out() {
        let points = parse("a.b=kill, c=delay:20;d=error:3,e=what,f");
        assert_eq!(points["a.b"], Action::Kill);
        assert_eq!(points["c"], Action::Delay(Duration::from_millis(20)));
        assert_eq!(points["d"], Action::Error(3));
        assert_eq!(points.len(), 3);
    }
}
