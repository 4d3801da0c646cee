//! Which of several scopes decides a key.

use std::collections::BTreeMap;

use super::{Scope, Values, check, key};

/// Values by scope.
pub type Scoped = BTreeMap<Scope, Values>;

/// The value of `name` for `service` on `host`, and the scope that says it: of those that apply the most specific.
/// Without a service or a host their scopes do not apply.
pub fn effective<'a>(
    scoped: &'a Scoped,
    name: &str,
    host: Option<&str>,
    service: Option<&str>,
) -> Option<(&'a Scope, &'a str)> {
    let applies = |scope: &Scope| match scope {
        Scope::Cluster => true,
        Scope::Service(of) => service == Some(of),
        Scope::Host(of) => host == Some(of),
    };
    scoped
        .iter()
        .rev()
        .filter(|(scope, _)| applies(scope))
        .find_map(|(scope, values)| Some((scope, values.get(name)?.as_str())))
}

/// Checks all values of a scope. Gives the keys that nobody knows, or why one of the others is wrong.
pub fn check_all(scope: &Scope, values: &Values) -> Result<Vec<String>, String> {
    for (name, text) in values {
        check(scope, name, text)?;
    }
    Ok(values.keys().filter(|name| key(name).is_none()).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scoped() -> Scoped {
        let values = |texts: &[(&str, &str)]| {
            texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
        };
        Scoped::from([
            (Scope::Cluster, values(&[("a", "1"), ("b", "2"), ("c", "3")])),
            (Scope::Service("cart".to_owned()), values(&[("a", "4"), ("b", "5")])),
            (Scope::Host("web-1".to_owned()), values(&[("a", "6")])),
        ])
    }

    #[track_caller]
    fn check_value(name: &str, host: &str, service: &str, expected: Option<(&str, &str)>) {
        let scoped = scoped();
        let found = effective(&scoped, name, Some(host), Some(service));
        let found = found.map(|(scope, text)| (scope.to_string(), text));
        assert_eq!(found, expected.map(|(scope, text)| (scope.to_owned(), text)), "{name} {host} {service}");
    }

    #[test]
    fn the_most_specific_scope_decides_each_key_apart() {
        check_value("a", "web-1", "cart", Some(("host:web-1", "6")));
        check_value("a", "web-2", "cart", Some(("service:cart", "4")));
        check_value("a", "web-2", "shop", Some(("cluster", "1")));
        check_value("b", "web-1", "cart", Some(("service:cart", "5")));
        check_value("c", "web-1", "cart", Some(("cluster", "3")));
        check_value("d", "web-1", "cart", None);
        assert_eq!(effective(&scoped(), "a", None, None), Some((&Scope::Cluster, "1")));
    }

    #[test]
    fn unknown_keys_are_named_and_a_wrong_value_refuses_the_whole() {
        let mut values = Values::from([
            ("trace.keep_ratio".to_owned(), "1/2".to_owned()),
            ("trace.tomorrow".to_owned(), "x".to_owned()),
        ]);
        assert_eq!(check_all(&Scope::Cluster, &values), Ok(vec!["trace.tomorrow".to_owned()]));
        values.insert("trace.keep_slow".to_owned(), "perhaps".to_owned());
        assert!(check_all(&Scope::Cluster, &values).expect_err("wrong").starts_with("trace.keep_slow: "));
    }
}
