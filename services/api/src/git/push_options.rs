//! What a push says beside its refs: `git push -o OPTION` (pack protocol, "push-options").

/// Most bytes of a request that are looked at: refs by the thousand come first.
const LIMIT: usize = 4 << 20;
/// The option that asks for no pipeline.
const NO_PIPELINE: &[u8] = b"ci.skip";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Lines of refs; the first one ends with what the client can do.
    Refs {
        first: bool,
        options: bool,
    },
    Options,
    Over,
}

/// Reads a push as it passes, up to its pack.
#[derive(Debug)]
pub(super) struct PushOptions {
    pending: Vec<u8>,
    read: usize,
    part: Part,
    no_pipeline: bool,
}

impl Default for PushOptions {
    fn default() -> Self {
        let part = Part::Refs { first: true, options: false };
        Self { pending: Vec::new(), read: 0, part, no_pipeline: false }
    }
}

impl PushOptions {
    /// Whether the pusher asked for no pipeline.
    pub(super) fn no_pipeline(&self) -> bool {
        self.no_pipeline
    }

    /// Takes in a block of the request.
    pub(super) fn read(&mut self, block: &[u8]) {
        if self.part == Part::Over {
            return;
        }
        self.read += block.len();
        self.pending.extend_from_slice(block);
        while self.part != Part::Over {
            let Some(head) = self.pending.get(..4) else { break };
            let length = std::str::from_utf8(head).ok().and_then(|hex| usize::from_str_radix(hex, 16).ok());
            match length {
                Some(0) => {
                    self.pending.drain(..4);
                    self.part = match self.part {
                        Part::Refs { options: true, .. } => Part::Options,
                        _ => Part::Over,
                    };
                }
                Some(length) if length >= 4 => {
                    let Some(line) = self.pending.get(4..length) else { break };
                    let line = line.strip_suffix(b"\n").unwrap_or(line);
                    match &mut self.part {
                        Part::Refs { first, options } => {
                            if std::mem::take(first)
                                && let Some(at) = line.iter().position(|byte| *byte == 0)
                            {
                                *options = line[at + 1..]
                                    .split(|byte| *byte == b' ')
                                    .any(|can| can == b"push-options");
                            }
                        }
                        Part::Options => self.no_pipeline |= line == NO_PIPELINE,
                        Part::Over => {}
                    }
                    self.pending.drain(..length);
                }
                _ => self.part = Part::Over,
            }
        }
        if self.part == Part::Over || self.read > LIMIT {
            self.part = Part::Over;
            self.pending = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> String {
        format!("{:04x}{text}", text.len() + 4)
    }

    fn push(capabilities: &str, options: &[&str]) -> String {
        let id = "0".repeat(40);
        let mut all =
            line(&format!("{id} {id} refs/heads/main\0 report-status {capabilities} agent=git/2\n"));
        all += &line(&format!("{id} {id} refs/heads/other\n"));
        all += "0000";
        if capabilities.contains("push-options") {
            options.iter().for_each(|option| all += &line(option));
            all += "0000";
        }
        all + "PACK and 0009ci.skip"
    }

    fn asked(push: &str, size: usize) -> bool {
        let mut options = PushOptions::default();
        push.as_bytes().chunks(size).for_each(|block| options.read(block));
        options.no_pipeline()
    }

    #[test]
    fn the_option_is_found_however_the_request_is_cut() {
        for size in [1, 3, 7, 4096] {
            assert!(asked(&push("push-options", &["ci.skip"]), size));
            assert!(asked(&push("push-options", &["other=1", "ci.skip\n"]), size));
            assert!(!asked(&push("push-options", &["ci.skipped", "no ci.skip"]), size));
            assert!(!asked(&push("push-options", &[]), size));
            assert!(!asked(&push("", &["ci.skip"]), size), "the pack is no option");
        }
        for nothing in ["", "0000", "000", "zzzz", "0001"] {
            assert!(!asked(nothing, 2));
        }
    }
}
