//! Aho–Corasick over bytes. Our own, because the masker needs what general crates do not show: how many of the
//! last bytes are the beginning of a needle, which is exactly what must be held back.

use zeroize::Zeroize;

/// Bytes that may belong to no view but the raw one: they begin escapes, wraps and zero-width characters.
const SPECIAL: [u8; 6] = [0x1b, b'\r', b'\n', 0, 0xe2, 0xef];

/// States are numbered breadth first: the edges of all states, in their order, lead to the states 1, 2, 3 …, so that an
/// edge's number says where it leads.
pub(crate) struct Automaton {
    root: Box<[u32; 256]>,
    /// Bytes that change the normalised view.
    special: Box<[bool; 256]>,
    /// A bit for each pair of bytes that begins a needle.
    pairs: Box<[u64; 1024]>,
    /// Per state: where its edges begin; one more entry at the end.
    first_edge: Vec<u32>,
    edge_byte: Vec<u8>,
    fail: Vec<u32>,
    depth: Vec<u32>,
    /// Per state: length of the longest needle that ends there, 0 if none does.
    matched: Vec<u32>,
}

/// The needles as they come. Agents build one per task, of ten thousands of nodes: in flat lists, not in one of each
/// node's own.
struct Trie {
    byte: Vec<u8>,
    /// The node's first child and its next sibling, 0 if there is none.
    child: Vec<u32>,
    sibling: Vec<u32>,
    matched: Vec<u32>,
}

impl Trie {
    fn new(needles: &[Vec<u8>]) -> Self {
        let most = 1 + needles.iter().map(Vec::len).sum::<usize>();
        let lists = || Vec::with_capacity(most);
        let mut this =
            Self { byte: Vec::with_capacity(most), child: lists(), sibling: lists(), matched: lists() };
        this.add(0, 0);
        for needle in needles {
            let node = needle.iter().fold(0, |node, byte| this.below(node, *byte));
            let matched = &mut this.matched[node as usize];
            *matched = (*matched).max(needle.len() as u32);
        }
        this
    }

    fn add(&mut self, byte: u8, sibling: u32) -> u32 {
        self.byte.push(byte);
        self.child.push(0);
        self.sibling.push(sibling);
        self.matched.push(0);
        (self.byte.len() - 1) as u32
    }

    /// The child with this byte, made if there is none.
    fn below(&mut self, node: u32, byte: u8) -> u32 {
        let first = self.child[node as usize];
        let known = self.children(node).find(|child| self.byte[*child as usize] == byte);
        known.unwrap_or_else(|| {
            let child = self.add(byte, first);
            self.child[node as usize] = child;
            child
        })
    }

    fn children(&self, node: u32) -> impl Iterator<Item = u32> {
        let some = |node: u32| (node != 0).then_some(node);
        std::iter::successors(some(self.child[node as usize]), move |child| {
            some(self.sibling[*child as usize])
        })
    }
}

impl Drop for Trie {
    fn drop(&mut self) {
        self.byte.zeroize();
    }
}

impl Automaton {
    pub(crate) fn new(needles: &[Vec<u8>]) -> Self {
        let trie = Trie::new(needles);
        let count = trie.byte.len();
        let mut this = Self {
            root: Box::new([0; 256]),
            special: Box::new([false; 256]),
            pairs: Box::new([0; 1024]),
            first_edge: Vec::with_capacity(count + 1),
            edge_byte: Vec::with_capacity(count),
            fail: vec![0; count],
            depth: vec![0; count],
            matched: Vec::with_capacity(count),
        };
        // The nodes in the order of their states.
        let mut nodes = Vec::with_capacity(count);
        nodes.push(0);
        let mut children = Vec::new();
        for state in 0..count {
            let node = nodes[state];
            this.first_edge.push(this.edge_byte.len() as u32);
            // What it fails to is less deep, and done.
            let inherited = this.matched.get(this.fail[state] as usize).copied().unwrap_or_default();
            this.matched.push(trie.matched[node as usize].max(inherited));
            children.extend(trie.children(node));
            children.sort_unstable_by_key(|child| trie.byte[*child as usize]);
            for child in children.drain(..) {
                let (byte, to) = (trie.byte[child as usize], nodes.len());
                if state == 0 {
                    this.root[usize::from(byte)] = to as u32;
                } else {
                    this.fail[to] = this.next(this.fail[state], byte);
                }
                this.depth[to] = this.depth[state] + 1;
                this.edge_byte.push(byte);
                nodes.push(child);
            }
        }
        this.first_edge.push(this.edge_byte.len() as u32);
        for byte in SPECIAL {
            this.special[usize::from(byte)] = true;
        }
        for first in trie.children(0) {
            let byte = trie.byte[first as usize];
            // A special byte may be invisible: the needle then goes on behind it.
            let seconds = trie.children(first).map(|second| trie.byte[second as usize]).chain(SPECIAL);
            for second in seconds {
                let (word, bit) = pair(byte, second);
                this.pairs[word] |= bit;
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
                return (from + i + 1) as u32;
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
