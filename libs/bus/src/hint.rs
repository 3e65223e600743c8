//! Words between the processes of a service that may get lost: a reason to look again at once, never news in itself.
//!
//! Who waits for a row to change (an agent's poll, a runner's) waits in one process, and the change may be made in another.
//! A hint travels with the wake-ups that follow commits anyway, and costs no statement of its own.

use crate::Bus;
use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, atomic::Ordering},
};
use tokio::sync::broadcast::{self, error::RecvError};

/// Hints that wait for a slow listener, who is then told to look at everything, or for the database.
pub(crate) const BEHIND: usize = 1024;
/// A notice carries less than eight thousand bytes.
const MOST: usize = 7_000;

/// What a listener is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// What somebody said.
    Said(Arc<str>),
    /// Something may have been missed.
    Missed,
}

/// Hears hints of all processes, this one included.
#[derive(Debug)]
pub struct Hints(broadcast::Receiver<Hint>);

impl Hints {
    /// The next one; `None`: the bus is gone.
    pub async fn next(&mut self) -> Option<Hint> {
        match self.0.recv().await {
            Ok(hint) => Some(hint),
            Err(RecvError::Lagged(_)) => Some(Hint::Missed),
            Err(RecvError::Closed) => None,
        }
    }
}

impl Bus {
    /// Says something to all processes that use this database, soon; here at once. Say it after the commit that it is about.
    ///
    /// # Panics
    /// It holds a space or is longer than 200 bytes.
    pub fn hint(&self, said: &str) {
        assert!(said.len() <= 200 && !said.contains(' '), "{said:?} is not a hint");
        let _ = self.0.hints.send(Hint::Said(said.into()));
        if !self.0.crosses.load(Ordering::Relaxed) {
            return;
        }
        let mut own = self.0.own.lock().unwrap_or_else(PoisonError::into_inner);
        // The database is away for long: hints may get lost, memory may not fill.
        if own.len() < BEHIND {
            own.insert(format!("{MARK}{said}"));
        }
        drop(own);
        self.0.own_changed.notify_one();
    }

    /// Listens from now on.
    pub fn hints(&self) -> Hints {
        Hints(self.0.hints.subscribe())
    }

    /// A word that another process said; whether it was a hint.
    pub(crate) fn heard(&self, word: &str) -> bool {
        let said = word.strip_prefix(MARK);
        if let Some(said) = said {
            let _ = self.0.hints.send(Hint::Said(said.into()));
        }
        said.is_some()
    }

    pub(crate) fn missed_hints(&self) {
        let _ = self.0.hints.send(Hint::Missed);
    }
}

/// Before a hint among the words of a notice; the others are names of services.
const MARK: char = '!';

/// Words in notices of the size that one may have, each after the teller's name.
pub(crate) fn notices(me: &str, words: BTreeSet<String>) -> Vec<String> {
    let mut notices: Vec<String> = Vec::new();
    for word in words {
        match notices.last_mut().filter(|last| last.len() + word.len() < MOST) {
            Some(last) => {
                last.push(' ');
                last.push_str(&word);
            }
            None => notices.push(format!("{me} {word}")),
        }
    }
    notices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_never_too_long_and_no_word_is_lost() {
        let words: BTreeSet<String> = (0..1000).map(|n| format!("!dispatcher.stop={n:036}")).collect();
        let notices = notices("me", words.clone());
        assert!(notices.len() > 5 && notices.iter().all(|notice| notice.len() < 8000));
        let read: BTreeSet<String> =
            notices.iter().flat_map(|notice| notice.split(' ').skip(1)).map(str::to_owned).collect();
        assert_eq!(read, words);
        assert!(super::notices("me", BTreeSet::new()).is_empty());
    }
}
