//! Expands the templates in configs/: `{{name}}` is replaced with a value. The lines between `{{repeat}}` and `{{end}}` are
//! repeated, with `{{i}}` counting from 1; those between `{{if tls}}` and `{{end}}` are kept only if the flag is set, those after
//! `{{if not tls}}` only if it is not. Blocks do not nest.

use anyhow::{Context, bail, ensure};

/// The values for a template.
#[derive(Debug, Default)]
pub struct Values<'a> {
    /// Values by name.
    pub names: &'a [(&'a str, String)],
    /// The flags that are set.
    pub flags: &'a [&'a str],
    /// The number of copies of `{{repeat}}` blocks.
    pub repeat: usize,
}

/// The expanded configuration. Names without a value are errors.
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
        bail!("no value for {{{{{}", after.lines().next().unwrap_or_default());
    }
    Ok(text)
}

/// The number of copies of the block that this line begins; `None` if it does not begin a block.
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
        assert_eq!(with("a {{b}} c", 0, &[]).unwrap_err().to_string(), "no value for {{b}} c");
    }

    #[test]
    fn conditions() {
        let template = "a\n  {{if tls}}\nb\n  {{end}}\n{{if not tls}}\nc\n{{end}}\n";
        assert_eq!(with(template, 0, &["tls"]).unwrap(), "a\nb\n");
        assert_eq!(with(template, 0, &["other"]).unwrap(), "a\nc\n");
    }
}
