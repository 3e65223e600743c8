//! Places as editors count them, in lines and UTF-16 units, and as the compiler does, in bytes.

use ls_types::{Position, Range};

/// The position of an offset; one beyond the text is its end.
pub(super) fn position(text: &str, offset: usize) -> Position {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let line = before.matches('\n').count();
    let start = before.rfind('\n').map_or(0, |i| i + 1);
    Position { line: number(line), character: number(before[start..].encode_utf16().count()) }
}

pub(super) fn range(text: &str, range: &std::ops::Range<usize>) -> Range {
    Range { start: position(text, range.start), end: position(text, range.end) }
}

/// The offset of a position; one beyond its line is the line's end.
pub(super) fn offset(text: &str, position: Position) -> usize {
    let (line, wanted) = (position.line as usize, position.character as usize);
    let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1));
    let Some(start) = starts.take(line + 1).nth(line) else { return text.len() };
    let own = text[start..].split(['\n', '\r']).next().unwrap_or_default();
    let mut units = 0;
    for (at, c) in own.char_indices() {
        if units >= wanted {
            return start + at;
        }
        units += c.len_utf16();
    }
    start + own.len()
}

/// The position of a line and a column in characters, both from 1.
pub(super) fn of_column(text: &str, line: usize, column: usize) -> Position {
    let own = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    let units: usize = own.chars().take(column.saturating_sub(1)).map(char::len_utf16).sum();
    Position { line: number(line.saturating_sub(1)), character: number(units) }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let text = "a: é\nb: 𝄞x\r\n\nc";
        for (at, _) in text.char_indices().filter(|(_, c)| !matches!(c, '\n' | '\r')) {
            assert_eq!(offset(text, position(text, at)), at);
        }
        assert_eq!(position(text, text.find('x').unwrap_or(0)), Position { line: 1, character: 5 });
        assert_eq!(of_column(text, 2, 5), Position { line: 1, character: 5 });
        assert_eq!(offset(text, Position { line: 1, character: 99 }), text.find('\r').unwrap_or(0));
        assert_eq!(offset(text, Position { line: 99, character: 0 }), text.len());
        assert_eq!(position(text, 99), Position { line: 3, character: 1 });
    }
}
