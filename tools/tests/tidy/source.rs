//! Rust text reduced to code, and the paths that the code names.
//!
//! This is not a parser: comments, strings and literals are cut out, and the rest is cut into words and signs. That is
//! enough to find `crate::…`, `super::…` and `use` trees, and it cannot fail on code that compiles.

/// A word or a sign of the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    /// An identifier, a keyword or a number.
    Word(&'a str),
    /// `::`
    PathSep,
    /// Any other sign.
    Sign(char),
}

/// Cuts code into tokens; comments, strings, characters and lifetimes are left out.
pub(crate) fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = string(rest) {
            length
        } else if first == '\'' {
            quote(rest)
        } else if is_word(first) {
            let length = rest.find(|sign| !is_word(sign)).unwrap_or(rest.len());
            found.push(Token::Word(&rest[..length]));
            length
        } else if rest.starts_with("::") {
            found.push(Token::PathSep);
            2
        } else {
            if !first.is_whitespace() {
                found.push(Token::Sign(first));
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    found
}

fn is_word(sign: char) -> bool {
    sign.is_alphanumeric() || sign == '_'
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if text[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// The length of a string literal of any kind that starts here.
fn string(text: &str) -> Option<usize> {
    let body = text.trim_start_matches(['b', 'c']);
    let prefix = text.len() - body.len();
    if prefix > 1 {
        return None;
    }
    if let Some(raw) = body.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let open = raw[hashes..].strip_prefix('"')?;
        let close = format!("\"{}", "#".repeat(hashes));
        let end = open.find(&close).map_or(open.len(), |end| end + close.len());
        return Some(text.len() - open.len() + end);
    }
    let open = body.strip_prefix('"')?;
    let mut escaped = false;
    for (at, sign) in open.char_indices() {
        if escaped {
            escaped = false;
        } else if sign == '\\' {
            escaped = true;
        } else if sign == '"' {
            return Some(prefix + 1 + at + 1);
        }
    }
    Some(text.len())
}

/// The length of a character literal, or of the quote of a lifetime.
fn quote(text: &str) -> usize {
    let mut signs = text.char_indices().skip(1);
    match (signs.next(), signs.next()) {
        // The sign after the backslash may itself be a quote.
        (Some((_, '\\')), Some((at, sign))) => {
            let after = at + sign.len_utf8();
            text[after..].find('\'').map_or(text.len(), |end| after + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}

/// A path that starts with `crate`, `super`, `self` or the name of another crate, as absolute as can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// Its words.
    pub(crate) path: Vec<String>,
    /// Whether it stands in a `use`, where a first word that is no keyword may be another crate.
    pub(crate) in_use: bool,
}

/// The paths named in the code outside `#[cfg(test)]`, relative to the crate. `module` is the file's own path.
pub(crate) fn paths(text: &str, module: &[String]) -> Vec<Named> {
    walk(text, module).0
}

/// The names of the modules in files of their own that are compiled for tests only.
pub(crate) fn test_modules(text: &str) -> Vec<String> {
    walk(text, &[]).1
}

fn walk(text: &str, module: &[String]) -> (Vec<Named>, Vec<String>) {
    let tokens = tokens(text);
    let module = module.to_vec();
    let mut walk = Walk { tokens: &tokens, at: 0, module, found: Vec::new(), test_modules: Vec::new() };
    walk.items();
    (walk.found, walk.test_modules)
}

struct Walk<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
    module: Vec<String>,
    found: Vec<Named>,
    test_modules: Vec<String>,
}

impl<'a> Walk<'a> {
    fn peek(&self, ahead: usize) -> Option<Token<'a>> {
        self.tokens.get(self.at + ahead).copied()
    }

    fn word(&self, ahead: usize) -> Option<&'a str> {
        match self.peek(ahead) {
            Some(Token::Word(word)) => Some(word),
            _ => None,
        }
    }

    /// Everything up to the end, or to the brace that closes an inline module.
    fn items(&mut self) {
        let mut depth = 0_usize;
        while let Some(token) = self.peek(0) {
            match token {
                Token::Sign('#') if self.starts_test() => self.skip_item(),
                Token::Word("mod") if self.peek(2) == Some(Token::Sign('{')) => {
                    self.module.push(self.word(1).unwrap_or_default().to_owned());
                    self.at += 3;
                    self.items();
                    self.module.pop();
                }
                Token::Word("use") => {
                    self.at += 1;
                    self.tree(&[]);
                }
                Token::Word("crate" | "super" | "self") if self.peek(1) == Some(Token::PathSep) => {
                    let path = self.plain_path();
                    self.name(&path, false);
                }
                Token::Sign('{') => {
                    depth += 1;
                    self.at += 1;
                }
                Token::Sign('}') => {
                    self.at += 1;
                    if depth == 0 {
                        return;
                    }
                    depth -= 1;
                }
                _ => self.at += 1,
            }
        }
    }

    /// At `#[cfg(test)]`, or `#[cfg(all(test, …))]`.
    fn starts_test(&self) -> bool {
        let plain =
            [Token::Sign('['), Token::Word("cfg"), Token::Sign('('), Token::Word("test"), Token::Sign(')')];
        let all = [
            Token::Sign('['),
            Token::Word("cfg"),
            Token::Sign('('),
            Token::Word("all"),
            Token::Sign('('),
            Token::Word("test"),
        ];
        let rest = self.tokens.get(self.at + 1..).unwrap_or_default();
        rest.starts_with(&plain) || rest.starts_with(&all)
    }

    /// Over attributes and one item: to its semicolon or its closing brace.
    fn skip_item(&mut self) {
        let mut depth = 0_usize;
        while let Some(token) = self.peek(0) {
            if let (Token::Word("mod"), Some(name)) = (token, self.word(1))
                && self.peek(2) == Some(Token::Sign(';'))
            {
                self.test_modules.push(name.to_owned());
            }
            self.at += 1;
            match token {
                Token::Sign('{' | '(' | '[') => depth += 1,
                Token::Sign(close @ ('}' | ')' | ']')) => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 && close == '}' {
                        return;
                    }
                }
                Token::Sign(';' | ',') if depth == 0 => return,
                _ => {}
            }
        }
    }

    /// A path in an expression or a type: words and `::`.
    fn plain_path(&mut self) -> Vec<String> {
        let mut path = Vec::new();
        while let Some(word) = self.word(0) {
            path.push(word.to_owned());
            self.at += 1;
            if self.peek(0) != Some(Token::PathSep) {
                break;
            }
            self.at += 1;
        }
        path
    }

    /// A `use` tree, with its prefix.
    fn tree(&mut self, before: &[String]) {
        let mut path = before.to_vec();
        path.append(&mut self.plain_path());
        match self.peek(0) {
            Some(Token::Sign('{')) => {
                self.at += 1;
                while !matches!(self.peek(0), None | Some(Token::Sign('}'))) {
                    self.tree(&path);
                    if self.peek(0) == Some(Token::Sign(',')) {
                        self.at += 1;
                    }
                }
                self.at += 1;
                return;
            }
            Some(Token::Sign('*')) => {
                path.push("*".to_owned());
                self.at += 1;
            }
            Some(Token::Word("as")) => self.at += 2,
            // A leading `::` names another crate. Unknown syntax must not stop the walk.
            Some(Token::Sign(',' | '}' | ';')) | None => {}
            Some(_) => self.at += 1,
        }
        self.name(&path, true);
    }

    fn name(&mut self, path: &[String], in_use: bool) {
        let mut absolute = self.module.clone();
        let mut rest = path;
        match path.first().map(String::as_str) {
            Some("crate") => {
                absolute.clear();
                rest = &path[1..];
            }
            Some("self") => rest = &path[1..],
            Some("super") => {
                while rest.first().is_some_and(|word| word == "super") {
                    absolute.pop();
                    rest = &rest[1..];
                }
            }
            // Another crate, or a child of this module. The caller knows the files and decides.
            Some(_) => {
                self.found.push(Named { path: path.to_vec(), in_use });
                return;
            }
            None => return,
        }
        absolute.extend(rest.iter().filter(|word| *word != "self").cloned());
        absolute.insert(0, "crate".to_owned());
        self.found.push(Named { path: absolute, in_use });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str, module: &[&str]) -> Vec<String> {
        let module: Vec<String> = module.iter().map(|word| (*word).to_owned()).collect();
        paths(text, &module).iter().map(|named| named.path.join("::")).collect()
    }

    #[test]
    fn comments_strings_and_characters_are_no_code() {
        let text = r##"
            // unsafe
            /* unsafe /* nested */ unsafe */
            "unsafe \" unsafe" b"unsafe" r#"unsafe " unsafe"# br"unsafe" c"unsafe"
            '"' '\'' '\\' '\u{41}' b'\'' 'a' safe::<'unsafe_life>('x')
        "##;
        let words: Vec<_> = tokens(text)
            .into_iter()
            .filter_map(|token| if let Token::Word(word) = token { Some(word) } else { None })
            .collect();
        assert_eq!(words, ["b", "safe", "unsafe_life"]);
    }

    #[test]
    fn use_trees_are_followed() {
        assert_eq!(
            named(
                "use crate::{a::B, c::{self, D as E}, f::*}; use super::g; pub(crate) use h::I;",
                &["m", "n"]
            ),
            ["crate::a::B", "crate::c", "crate::c::D", "crate::f::*", "crate::m::g", "h::I"]
        );
    }

    #[test]
    fn paths_in_expressions_are_found() {
        assert_eq!(
            named("fn f(x: crate::a::T) -> u8 { super::g(self::h::<crate::b::C>()) }", &["m"]),
            ["crate::a::T", "crate::g", "crate::m::h", "crate::b::C"]
        );
    }

    #[test]
    fn inline_modules_are_a_step_down() {
        assert_eq!(
            named("mod inner { use super::a; mod deep { use super::super::b; } } use super::c;", &["m"]),
            ["crate::m::a", "crate::m::b", "crate::c"]
        );
    }

    #[test]
    fn test_code_is_left_out() {
        let text = "#[cfg(test)] mod tests { use crate::up; fn f() {} } #[cfg(all(test, unix))] use crate::up; \
                    #[cfg(test)] pub(crate) mod other; #[cfg(test)] pub(crate) use up::{A, B}; use crate::a;";
        assert_eq!(named(text, &[]), ["crate::a"]);
        assert_eq!(test_modules(text), ["other"]);
    }
}
