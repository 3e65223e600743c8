//! Aho–Corasick over bytes. Our own, because the masker needs what general crates do not show: how many of the
//! last bytes are the beginning of a needle, which is exactly what must be held back.

use zeroize::Zeroize;

/// Bytes that may belong to no view but the raw one: they begin escapes, wraps and zero-width characters.
const SPECIAL: [u8; 6] = [0x1b, b'\r', b'\n', 0, 0xe2, 0xef];

pub(crate) struct Automaton {
    root: Box<[u32; 256]>,
    /// Bytes that change the normalised view.
    special: Box<[bool; 256]>,
    /// A bit for each pair of bytes that begins a needle.
    pairs: Box<[u64; 1024]>,
    /// Per state: where its edges begin; one more entry at the end.
    first_edge: Vec<u32>,
    edge_byte: Vec<u8>,
    edge_to: Vec<u32>,
    fail: Vec<u32>,
    depth: Vec<u32>,
    /// Per state: length of the longest needle that ends there, 0 if none does.
    matched: Vec<u32>,
}

impl Automaton {
    pub(crate) fn new(needles: &[Vec<u8>]) -> Self {
        // A trie, breadth first, so that states are numbered by depth and fail links point backwards.
        let mut children: Vec<Vec<(u8, u32)>> = vec![Vec::new()];
        let mut matched = vec![0u32];
        let mut depth = vec![0u32];
        for needle in needles {
            let mut at = 0usize;
            for (i, byte) in needle.iter().enumerate() {
                at = match children[at].iter().find(|(b, _)| b == byte) {
                    Some((_, to)) => *to as usize,
                    None => {
                        let to = children.len();
                        children[at].push((*byte, to as u32));
                        children.push(Vec::new());
                        matched.push(0);
                        depth.push(i as u32 + 1);
                        to
                    }
                };
            }
            matched[at] = matched[at].max(needle.len() as u32);
        }
        let count = children.len();
        let mut first_edge = Vec::with_capacity(count + 1);
        let mut edge_byte = Vec::with_capacity(count);
        let mut edge_to = Vec::with_capacity(count);
        for edges in &mut children {
            edges.sort_unstable();
            first_edge.push(edge_byte.len() as u32);
            for (byte, to) in edges.iter() {
                edge_byte.push(*byte);
                edge_to.push(*to);
            }
        }
        first_edge.push(edge_byte.len() as u32);
        let mut root = Box::new([0u32; 256]);
        let mut special = Box::new([false; 256]);
        let mut pairs = Box::new([0u64; 1024]);
        for byte in SPECIAL {
            special[usize::from(byte)] = true;
        }
        for (byte, to) in &children[0] {
            root[*byte as usize] = *to;
            // A special byte may be invisible: the needle then goes on behind it.
            for second in SPECIAL {
                let (word, bit) = pair(*byte, second);
                pairs[word] |= bit;
            }
            for (second, _) in &children[*to as usize] {
                let (word, bit) = pair(*byte, *second);
                pairs[word] |= bit;
            }
        }
        let mut this = Self {
            root,
            special,
            pairs,
            first_edge,
            edge_byte,
            edge_to,
            fail: vec![0; count],
            depth,
            matched,
        };
        let mut queue: std::collections::VecDeque<u32> = children[0].iter().map(|(_, to)| *to).collect();
        while let Some(state) = queue.pop_front() {
            for (byte, to) in &children[state as usize] {
                let fail = this.next(this.fail[state as usize], *byte);
                this.fail[*to as usize] = fail;
                let inherited = this.matched[fail as usize];
                let own = &mut this.matched[*to as usize];
                *own = (*own).max(inherited);
                queue.push_back(*to);
            }
        }
        for edges in &mut children {
            for (byte, _) in edges {
                byte.zeroize();
            }
        }
        this
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.edge_byte.is_empty()
    }

    /// How many bytes do nothing when nothing is under way. The last one may always begin a needle: what
    /// follows it is not known.
    #[inline]
    pub(crate) fn skip(&self, bytes: &[u8]) -> usize {
        let starts = |two: &[u8]| {
            let (word, bit) = pair(two[0], two[1]);
            self.special[two[0] as usize] || self.pairs[word] & bit != 0
        };
        bytes.windows(2).position(starts).unwrap_or(bytes.len().saturating_sub(1))
    }

    #[inline]
    pub(crate) fn next(&self, mut state: u32, byte: u8) -> u32 {
        loop {
            if state == 0 {
                return self.root[byte as usize];
            }
            let from = self.first_edge[state as usize] as usize;
            let to = self.first_edge[state as usize + 1] as usize;
            let edges = &self.edge_byte[from..to];
            let found = if edges.len() <= 8 {
                edges.iter().position(|b| *b == byte)
            } else {
                edges.binary_search(&byte).ok()
            };
            if let Some(i) = found {
                return self.edge_to[from + i];
            }
            state = self.fail[state as usize];
        }
    }

    #[inline]
    pub(crate) fn depth(&self, state: u32) -> u32 {
        self.depth[state as usize]
    }

    #[inline]
    pub(crate) fn matched(&self, state: u32) -> u32 {
        self.matched[state as usize]
    }
}

#[inline]
fn pair(first: u8, second: u8) -> (usize, u64) {
    let index = usize::from(first) << 8 | usize::from(second);
    (index / 64, 1 << (index % 64))
}

impl Drop for Automaton {
    fn drop(&mut self) {
        self.edge_byte.zeroize();
        self.pairs.zeroize();
    }
}
