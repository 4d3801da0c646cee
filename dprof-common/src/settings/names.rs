//! Names of services as one line of text: `cart = port:8080; db = comm:redis-server exe:/opt/*`.
//!
//! Of several names the first whose conditions all hold is taken. What a reader would get wrong: patterns hold no
//! space and no semicolon, since those part them; `?` stands for any one character.

/// A service's name, and what a process must be to have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName {
    /// The name.
    pub name: String,
    /// Field (comm, exe, cmdline, unit, container or port) and pattern; all must hold.
    pub conditions: Vec<(&'static str, String)>,
}

/// What a condition can be about.
pub(super) const FIELDS: [&str; 6] = ["comm", "exe", "cmdline", "unit", "container", "port"];

/// Names are tried one by one for each new process.
const NAMES_MAX: usize = 1_000;
const NAME_BYTES_MAX: usize = 255;

/// The names that `text` lists; `none` = no name is given.
pub fn parse_service_names(text: &str) -> Option<Vec<ServiceName>> {
    if text == "none" {
        return Some(Vec::new());
    }
    let names: Option<Vec<ServiceName>> = text.split(';').map(parse_one).collect();
    names.filter(|names| names.len() <= NAMES_MAX)
}

fn parse_one(text: &str) -> Option<ServiceName> {
    let (name, conditions) = text.split_once('=')?;
    let name = name.trim();
    let is_name = (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
    let condition = |word: &str| {
        let (field, pattern) = word.split_once(':')?;
        let field = FIELDS.into_iter().find(|known| *known == field)?;
        let is_port = pattern.parse::<u16>().is_ok_and(|port| port > 0);
        let is_right = if field == "port" { is_port } else { !pattern.is_empty() };
        is_right.then(|| (field, pattern.to_owned()))
    };
    let conditions: Vec<_> = conditions.split_whitespace().map(condition).collect::<Option<_>>()?;
    (is_name && !conditions.is_empty()).then(|| ServiceName { name: name.to_owned(), conditions })
}

/// As [`parse_service_names`] reads it.
pub fn service_names_text(names: &[ServiceName]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let one = |ServiceName { name, conditions }: &ServiceName| {
        let conditions: Vec<String> = conditions
            .iter()
            .map(|(field, pattern)| format!("{field}:{}", pattern.replace([' ', '\t', ';'], "?")))
            .collect();
        format!("{name} = {}", conditions.join(" "))
    };
    names.iter().map(one).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_as_written_and_what_is_none_is_refused() {
        for text in ["none", "cart = port:8080", "cart = port:8080; db v2 = comm:redis-* exe:/opt/?/redis"] {
            let names = parse_service_names(text).expect(text);
            assert_eq!(service_names_text(&names), text);
        }
        assert_eq!(parse_service_names("a=comm:x;b=unit:y").expect("two").len(), 2);
        for bad in [
            "",
            "cart",
            "cart =",
            "= port:1",
            "cart = port:0",
            "cart = port:x",
            "cart = pid:1",
            "a=comm:x;",
            "a=comm:",
        ] {
            assert_eq!(parse_service_names(bad), None, "{bad}");
        }
        let odd = ServiceName { name: "a".to_owned(), conditions: vec![("cmdline", "x y;z".to_owned())] };
        assert_eq!(service_names_text(&[odd]), "a = cmdline:x?y?z");
    }
}
