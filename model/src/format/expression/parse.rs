//! From text to a tree, by CEL's grammar: what it says is not yet looked at.

use super::datum::Datum;

/// Bytes of an expression at most.
const TEXT_BYTES_MAX: usize = 8192;
/// Operators and brackets within each other that are followed.
const DEPTH_MAX: usize = 48;

/// Parts within each other at most, whatever makes them be there.
const HEIGHT_MAX: usize = 64;

/// What an expression is made of.
#[derive(Debug)]
pub(super) enum Tree {
    Literal(Datum<'static>),
    Name(String),
    Member(Box<Tree>, String),
    Index(Box<Tree>, Box<Tree>),
    /// `name(arguments)`, or `target.name(arguments)` with the target first.
    Call {
        name: String,
        has_target: bool,
        arguments: Vec<Tree>,
    },
    Not(Box<Tree>),
    Negative(Box<Tree>),
    Binary(Operation, Box<Tree>, Box<Tree>),
    Choice(Box<[Tree; 3]>),
    List(Vec<Tree>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Or,
    And,
    Equal,
    Different,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// Binary operators by how tightly they bind, the loosest first; of two that begin alike the longer first.
const LEVELS: [&[(&str, Operation)]; 5] = [
    &[("||", Operation::Or)],
    &[("&&", Operation::And)],
    &[
        ("==", Operation::Equal),
        ("!=", Operation::Different),
        ("<=", Operation::LessOrEqual),
        ("<", Operation::Less),
        (">=", Operation::GreaterOrEqual),
        (">", Operation::Greater),
        ("in", Operation::In),
    ],
    &[("+", Operation::Add), ("-", Operation::Subtract)],
    &[("*", Operation::Multiply), ("/", Operation::Divide), ("%", Operation::Remainder)],
];

/// Reads a text.
pub(super) fn parse(text: &str) -> Result<Tree, String> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(format!("is longer than {TEXT_BYTES_MAX} bytes"));
    }
    let mut reader = Reader { text, at: 0, depth: 0 };
    let tree = reader.expression()?;
    reader.blanks();
    if reader.at != text.len() {
        return Err(reader.wrong("something that does not belong here"));
    }
    if height(&tree) > HEIGHT_MAX {
        return Err(format!("has more than {HEIGHT_MAX} parts within each other"));
    }
    Ok(tree)
}

/// How many parts are within each other; without recursion, since that is what is bounded by it.
fn height(tree: &Tree) -> usize {
    let (mut height, mut waiting) = (0, vec![(tree, 1)]);
    while let Some((tree, depth)) = waiting.pop() {
        height = height.max(depth);
        let parts: Vec<&Tree> = match tree {
            Tree::Literal(_) | Tree::Name(_) => Vec::new(),
            Tree::Member(of, _) | Tree::Not(of) | Tree::Negative(of) => vec![&**of],
            Tree::Index(left, right) | Tree::Binary(_, left, right) => vec![&**left, &**right],
            Tree::Call { arguments: parts, .. } | Tree::List(parts) => parts.iter().collect(),
            Tree::Choice(parts) => parts.iter().collect(),
        };
        waiting.extend(parts.into_iter().map(|part| (part, depth + 1)));
    }
    height
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn wrong(&self, what: &str) -> String {
        format!("{what} at byte {} of `{}`", self.at, self.text)
    }

    fn blanks(&mut self) {
        loop {
            let rest = self.rest();
            self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']).len();
            let Some(comment) = self.rest().strip_prefix("//") else { return };
            self.at += 2 + comment.find('\n').unwrap_or(comment.len());
        }
    }

    /// Takes a symbol, if it is next.
    fn takes(&mut self, symbol: &str) -> bool {
        self.blanks();
        let is_next = self.rest().starts_with(symbol);
        self.at += if is_next { symbol.len() } else { 0 };
        is_next
    }

    fn expects(&mut self, symbol: &str) -> Result<(), String> {
        if self.takes(symbol) { Ok(()) } else { Err(self.wrong(&format!("no `{symbol}`"))) }
    }

    fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, String>) -> Result<T, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("nests deeper than {DEPTH_MAX}"));
        }
        let read = read(self);
        self.depth -= 1;
        read
    }

    fn expression(&mut self) -> Result<Tree, String> {
        self.nested(|reader| {
            let condition = reader.binary(0)?;
            if !reader.takes("?") {
                return Ok(condition);
            }
            let yes = reader.expression()?;
            reader.expects(":")?;
            let no = reader.expression()?;
            Ok(Tree::Choice(Box::new([condition, yes, no])))
        })
    }

    fn binary(&mut self, level: usize) -> Result<Tree, String> {
        let Some(operators) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        let mut length = 0;
        while let Some((_, operation)) = operators.iter().find(|(symbol, _)| self.takes_operator(symbol)) {
            length += 1;
            if length > DEPTH_MAX {
                return Err(format!("has more than {DEPTH_MAX} operators in a row"));
            }
            let right = self.binary(level + 1)?;
            left = Tree::Binary(*operation, Box::new(left), Box::new(right));
        }
        Ok(left)
    }

    fn takes_operator(&mut self, symbol: &str) -> bool {
        self.blanks();
        let Some(after) = self.rest().strip_prefix(symbol) else { return false };
        // `in` is a word, and `index` is another.
        if symbol == "in" && after.starts_with(|next: char| next.is_ascii_alphanumeric() || next == '_') {
            return false;
        }
        self.at += symbol.len();
        true
    }

    fn unary(&mut self) -> Result<Tree, String> {
        self.blanks();
        if !self.rest().starts_with("!=") && self.takes("!") {
            return Ok(Tree::Not(Box::new(self.nested(Self::unary)?)));
        }
        let begins_number = self.rest().strip_prefix('-').is_some_and(|rest| rest.starts_with(|next: char| next.is_ascii_digit()));
        if !begins_number && self.takes("-") {
            return Ok(Tree::Negative(Box::new(self.nested(Self::unary)?)));
        }
        self.member()
    }

    fn member(&mut self) -> Result<Tree, String> {
        let mut tree = self.primary()?;
        let mut length = 0;
        loop {
            length += 1;
            if length > DEPTH_MAX {
                return Err(format!("has more than {DEPTH_MAX} members in a row"));
            }
            if self.takes(".") {
                let name = self.name()?;
                tree = if self.takes("(") {
                    let mut arguments = vec![tree];
                    self.list(")", &mut arguments)?;
                    Tree::Call { name, has_target: true, arguments }
                } else {
                    Tree::Member(Box::new(tree), name)
                };
            } else if self.takes("[") {
                let index = self.expression()?;
                self.expects("]")?;
                tree = Tree::Index(Box::new(tree), Box::new(index));
            } else {
                return Ok(tree);
            }
        }
    }

    fn primary(&mut self) -> Result<Tree, String> {
        self.blanks();
        if self.takes("(") {
            let inside = self.expression()?;
            self.expects(")")?;
            return Ok(inside);
        }
        if self.takes("[") {
            let mut items = Vec::new();
            self.list("]", &mut items)?;
            return Ok(Tree::List(items));
        }
        if let Some(text) = self.quoted()? {
            return Ok(Tree::Literal(Datum::Text(text.into())));
        }
        if self.rest().starts_with(|next: char| next.is_ascii_digit() || next == '-' || next == '.') {
            return self.number();
        }
        let name = self.name()?;
        Ok(match name.as_str() {
            "true" => Tree::Literal(Datum::Bool(true)),
            "false" => Tree::Literal(Datum::Bool(false)),
            "null" => Tree::Literal(Datum::Null),
            _ if self.takes("(") => {
                let mut arguments = Vec::new();
                self.list(")", &mut arguments)?;
                Tree::Call { name, has_target: false, arguments }
            }
            _ => Tree::Name(name),
        })
    }

    fn list(&mut self, end: &str, items: &mut Vec<Tree>) -> Result<(), String> {
        if self.takes(end) {
            return Ok(());
        }
        loop {
            items.push(self.expression()?);
            if !self.takes(",") {
                return self.expects(end);
            }
            if self.takes(end) {
                return Ok(());
            }
        }
    }

    fn name(&mut self) -> Result<String, String> {
        self.blanks();
        let rest = self.rest();
        let length = rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
        if length == 0 || rest.as_bytes()[0].is_ascii_digit() {
            return Err(self.wrong("no name or value"));
        }
        self.at += length;
        Ok(rest[..length].to_owned())
    }

    fn number(&mut self) -> Result<Tree, String> {
        let rest = self.rest();
        let (sign, digits) = rest.strip_prefix('-').map_or(("", rest), |digits| ("-", digits));
        if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
            let length = hex.bytes().take_while(u8::is_ascii_hexdigit).count();
            let value = i64::from_str_radix(&format!("{sign}{}", &hex[..length]), 16).map_err(|_| self.wrong("a number out of range"))?;
            self.at += sign.len() + 2 + length;
            return Ok(Tree::Literal(Datum::Int(value)));
        }
        let mut length = sign.len();
        let mut before = b'0';
        for byte in rest.bytes().skip(length) {
            let continues = byte.is_ascii_digit()
                || byte == b'.'
                || matches!(byte, b'e' | b'E')
                || (matches!(byte, b'+' | b'-') && matches!(before, b'e' | b'E'));
            if !continues {
                break;
            }
            before = byte;
            length += 1;
        }
        let text = &rest[..length];
        let value = if rest[length..].starts_with(['u', 'U']) {
            length += 1;
            text.parse().map(Datum::Uint).ok()
        } else if text.contains(['.', 'e', 'E']) {
            text.parse().map(Datum::Double).ok()
        } else {
            text.parse().map(Datum::Int).ok()
        };
        let value = value.ok_or_else(|| self.wrong("a number that is none, or out of range"))?;
        self.at += length;
        Ok(Tree::Literal(value))
    }

    /// A text in quotes of either kind, raw after `r`; none if there is no such thing here.
    fn quoted(&mut self) -> Result<Option<String>, String> {
        let rest = self.rest();
        let raw = rest.starts_with("r'") || rest.starts_with("r\"") || rest.starts_with("R'") || rest.starts_with("R\"");
        let from = usize::from(raw);
        let Some(quote) = rest[from..].chars().next().filter(|first| matches!(first, '\'' | '"')) else { return Ok(None) };
        if rest[from..].starts_with(&quote.to_string().repeat(3)) {
            return Err(self.wrong("a text in three quotes, which is not read"));
        }
        let mut text = String::new();
        let mut characters = rest[from + 1..].char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '\n' => break,
                _ if character == quote => {
                    self.at += from + 1 + at + 1;
                    return Ok(Some(text));
                }
                '\\' if !raw => {
                    let escape = characters.next().map(|(_, escape)| escape);
                    text.push(self.escaped(escape, &mut characters)?);
                }
                other => text.push(other),
            }
        }
        Err(self.wrong("a text without an end"))
    }

    fn escaped(&self, escape: Option<char>, characters: &mut std::str::CharIndices<'_>) -> Result<char, String> {
        let digits = match escape {
            Some('x' | 'X') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some(same @ ('\\' | '\'' | '"' | '`' | '?')) => return Ok(same),
            _ => return Err(self.wrong("an escape that is not read")),
        };
        let code: String = characters.by_ref().take(digits).map(|(_, digit)| digit).collect();
        let code = u32::from_str_radix(&code, 16).ok().filter(|_| code.len() == digits);
        code.and_then(char::from_u32).ok_or_else(|| self.wrong("an escape that is no character"))
    }
}
