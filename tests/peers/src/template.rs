//! The configurations in configs/: `{{name}}` stands for a value. The lines between `{{repeat}}` and `{{end}}` come as often as
//! asked, with `{{i}}` counting from 1; those between `{{if tls}}` and `{{end}}` only if this is so, those after `{{if not tls}}`
//! only if it is not. A block does not contain another.

use anyhow::{Context, bail, ensure};

/// What makes a configuration of a template.
#[derive(Debug, Default)]
pub struct Values<'a> {
    /// What names stand for.
    pub names: &'a [(&'a str, String)],
    /// What is so; everything else is not.
    pub flags: &'a [&'a str],
    /// How often what is repeated comes.
    pub repeat: usize,
}

/// The text of a configuration, complete. Names without a value are errors.
pub fn expand(template: &str, values: &Values) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut lines = template.split_inclusive('\n');
    while let Some(line) = lines.next() {
        let Some(copies) = copies(line, values) else {
            text += line;
            continue;
        };
        let mut block = String::new();
        loop {
            let inner = lines.next().with_context(|| format!("{} without {{{{end}}}}", line.trim()))?;
            if inner.trim() == "{{end}}" {
                break;
            }
            ensure!(self::copies(inner, values).is_none(), "{} within {}", inner.trim(), line.trim());
            block += inner;
        }
        text.extend((1..=copies).map(|i| block.replace("{{i}}", &i.to_string())));
    }
    for (name, value) in values.names {
        text = text.replace(&format!("{{{{{name}}}}}"), value);
    }
    if let Some((_, after)) = text.split_once("{{") {
        bail!("nothing stands for {{{{{}", after.lines().next().unwrap_or_default());
    }
    Ok(text)
}

/// How often the block that this line begins is there; none: it begins none.
fn copies(line: &str, values: &Values) -> Option<usize> {
    let what = line.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    if what == "repeat" {
        return Some(values.repeat);
    }
    let flag = what.strip_prefix("if ")?;
    let is = |flag: &str| values.flags.contains(&flag);
    Some(flag.strip_prefix("not ").map_or_else(|| is(flag), |flag| !is(flag)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(template: &str, repeat: usize, flags: &[&str]) -> anyhow::Result<String> {
        expand(template, &Values { names: &[("port", "80".into())], flags, repeat })
    }

    #[test]
    fn values_and_blocks() {
        let template = "port {{port}}\n {{repeat}}\nno {{i}} of {{port}}\n{{end}}\nend\n";
        assert_eq!(with(template, 2, &[]).unwrap(), "port 80\nno 1 of 80\nno 2 of 80\nend\n");
        assert_eq!(with("{{repeat}}\nx\n{{end}}\n", 0, &[]).unwrap(), "");
        assert!(with("{{repeat}}\nx\n", 1, &[]).is_err());
        assert!(with("{{repeat}}\n{{repeat}}\n{{end}}\n", 1, &[]).is_err());
        assert_eq!(with("a {{b}} c", 0, &[]).unwrap_err().to_string(), "nothing stands for {{b}} c");
    }

    #[test]
    fn conditions() {
        let template = "a\n  {{if tls}}\nb\n  {{end}}\n{{if not tls}}\nc\n{{end}}\n";
        assert_eq!(with(template, 0, &["tls"]).unwrap(), "a\nb\n");
        assert_eq!(with(template, 0, &["other"]).unwrap(), "a\nc\n");
    }
}
