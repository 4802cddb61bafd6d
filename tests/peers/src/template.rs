//! The configurations in configs/: `{{name}}` stands for a value, and the lines between `{{repeat}}` and `{{end}}` come as
//! often as asked, with `{{i}}` counting from 1.

use anyhow::{Context, bail};

/// The text of a configuration, complete. Names without a value are errors.
pub fn expand(template: &str, repeat: usize, values: &[(&str, String)]) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{repeat}}\n") {
        let (block, after) = after.split_once("{{end}}\n").context("a {{repeat}} without {{end}}")?;
        text += before;
        text.extend((1..=repeat).map(|i| block.replace("{{i}}", &i.to_string())));
        rest = after;
    }
    text += rest;
    for (name, value) in values {
        text = text.replace(&format!("{{{{{name}}}}}"), value);
    }
    if let Some((_, after)) = text.split_once("{{") {
        bail!("nothing stands for {{{{{}", after.lines().next().unwrap_or_default());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_blocks() {
        let template = "port {{port}}\n{{repeat}}\nno {{i}} of {{port}}\n{{end}}\nend\n".replace("}}\n\n", "}}\n");
        let text = expand(&template, 2, &[("port", "80".into())]).unwrap();
        assert_eq!(text, "port 80\nno 1 of 80\nno 2 of 80\nend\n");
        assert_eq!(expand("{{repeat}}\nx\n{{end}}\n", 0, &[]).unwrap(), "");
        assert!(expand("{{repeat}}\nx\n", 1, &[]).is_err());
        assert_eq!(expand("a {{b}} c", 0, &[]).unwrap_err().to_string(), "nothing stands for {{b}} c");
    }
}
