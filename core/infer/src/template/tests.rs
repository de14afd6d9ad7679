use serde_json::json;

use super::*;

fn template(text: &str) -> ChatTemplate {
    ChatTemplate::compile(text, None, Origin::Given, "<s>".into(), "</s>".into()).unwrap()
}

fn rendered(text: &str, variables: Json) -> String {
    let variables = variables.as_object().cloned().unwrap_or_default();
    template(text).render(&Conversation { variables, ..Conversation::default() }).unwrap()
}

#[test]
fn a_conversation_becomes_the_prompt_the_model_was_trained_on() {
    // SmolLM2's own template.
    let text = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>\
                system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}\
                {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
                {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let messages = [
        json!({"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]}),
    ];
    let conversation =
        Conversation { messages: &messages, add_generation_prompt: true, ..Conversation::default() };
    let expected = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
                    <|im_start|>user\nHi you<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(template(text).render(&conversation).unwrap(), expected);
}

#[test]
fn what_python_would_print_is_printed() {
    // What Jinja with the settings of Hugging Face is specified to print; written by hand.
    for (text, expected) in [
        ("{{ t }} {{ n }} {{ l }} {{ d }}", "True None ['a', 1, 2.5, None] {'b': False, 'a': \"it's\"}"),
        ("{{ d | tojson }}", r#"{"b": false, "a": "it's"}"#),
        ("{{ l | tojson }} {{ u | tojson }}", r#"["a", 1, 2.5, null] "é<&>""#),
        ("{{ d | tojson(indent=2) }}", "{\n  \"b\": false,\n  \"a\": \"it's\"\n}"),
        ("{{ d | tojson(sort_keys=true, separators=[',', ':']) }}", r#"{"a":"it's","b":false}"#),
        ("{{ u | tojson(ensure_ascii=true) }}", r#""\u00e9<&>""#),
        (
            "{{ '  x '.strip() }}|{{ 'a,b'.split(',')[-1] }}|{{ 'Ab'.upper() }}|{{ 'abc'[::-1] }}",
            "x|b|AB|cba",
        ),
        (
            "{% for k, v in d.items() %}{{ k }};{% endfor %}{{ 'b' in d }}{{ d.get('z') is none }}",
            "b;a;TrueTrue",
        ),
        ("{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "13"),
        ("{%- set ns = namespace(x=1) -%}{% set ns.x = ns.x + 1 %}{{ ns.x }}", "2"),
        ("  {% if true %}\n  x\n  {% endif %}\ny\n", "  x\ny"),
        ("a{% generation %}b{% endgeneration %}c {%- generation -%} d {%- endgeneration %}", "abcd"),
        ("{{ undefined_name }}{{ d.nothing }}{{ bos_token }}{{ 7 // 2 }} {{ 1.0 }}", "<s>3 1.0"),
        ("{{ l | length }} {{ l[1:] | join('-') }} {{ 'x' ~ 1 ~ none }}", "4 1-2.5-None x1None"),
    ] {
        let variables = json!({"t": true, "n": null, "l": ["a", 1, 2.5, null], "d": {"b": false, "a": "it's"}, "u": "é<&>"});
        assert_eq!(rendered(text, variables), expected, "{text}");
    }
}

#[test]
fn tool_arguments_given_as_text_arrive_as_objects() {
    let call = json!({"role": "assistant", "content": null, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": [2]}"}}]});
    let text = "{% for m in messages %}{{ m.tool_calls[0].function.arguments | tojson }}{{ m.tool_calls[0].function.arguments.b }}{% endfor %}";
    let conversation = Conversation { messages: &[call], ..Conversation::default() };
    assert_eq!(template(text).render(&conversation).unwrap(), "{\"b\": 1, \"a\": [2]}1");
}

#[test]
fn the_template_for_tools_is_used_when_there_are_tools() {
    let two = ChatTemplate::compile(
        "plain",
        Some("{{ tools[0].name }}"),
        Origin::Given,
        String::new(),
        String::new(),
    );
    let two = two.unwrap();
    let tools = json!([{"name": "f"}]);
    assert_eq!(two.render(&Conversation::default()).unwrap(), "plain");
    assert_eq!(two.render(&Conversation { tools: Some(&tools), ..Conversation::default() }).unwrap(), "f");
}

#[test]
fn a_template_that_refuses_says_so_in_its_own_words() {
    let error = template("{{ raise_exception('Only user and assistant roles are supported!') }}")
        .render(&Conversation::default())
        .unwrap_err();
    assert!(
        matches!(&error, TemplateError::Refused { message } if message == "Only user and assistant roles are supported!"),
        "{error:?}"
    );
}

#[test]
fn a_date_is_shown_when_there_is_one() {
    let text = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}no date{% endif %}";
    assert_eq!(rendered(text, json!({})), "no date");
    let now = Some(CivilTime::from_unix_seconds(0));
    assert_eq!(
        template(text).render(&Conversation { now, ..Conversation::default() }).unwrap(),
        "01 Jan 1970"
    );
}

#[test]
fn broken_and_endless_templates_end_with_an_error() {
    let compile = |text: &str| ChatTemplate::compile(text, None, Origin::Given, String::new(), String::new());
    assert!(matches!(compile("{% for %}"), Err(TemplateError::Syntax { .. })));
    let endless = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
    let long = "{% for a in range(100000) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' * 1000 }}{% endfor %}";
    for text in ["{{ messages.nothing.more }}", endless, long, "{% include 'x' %}"] {
        let error = template(text).render(&Conversation::default()).unwrap_err();
        assert!(matches!(error, TemplateError::Failed { .. }), "{text}: {error}");
    }
}

#[test]
fn templates_are_found_where_models_keep_them() {
    let directory = tempfile::tempdir().unwrap();
    let found = || {
        let files =
            TemplateFiles::of_files(&drophammer_formats::TokenizerFiles::find(directory.path())).unwrap();
        (files.main, files.with_tools)
    };
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    assert_eq!(found(), (None, None));
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]}"#,
    );
    assert_eq!(found(), (Some("D".into()), Some("T".into())));
    write("tokenizer_config.json", r#"{"chat_template": "C"}"#);
    assert_eq!(found(), (Some("C".into()), None));
    write("chat_template.jinja", "J");
    assert_eq!(found(), (Some("J".into()), None));
}

#[test]
fn a_model_without_a_template_gets_a_substitute_that_says_so() {
    let fixture =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/shakespeare-llama");
    let source = drophammer_formats::Source::open(fixture).unwrap();
    let tokenizer = Tokenizer::from_source(&source).unwrap();
    let template = ChatTemplate::of_model(&TemplateFiles::of_source(&source).unwrap(), &tokenizer).unwrap();
    assert!(template.origin().is_fallback() && template.origin().notice().is_some());
    let messages = [json!({"role": "user", "content": "My lord?"})];
    let conversation =
        Conversation { messages: &messages, add_generation_prompt: true, ..Conversation::default() };
    assert_eq!(template.render(&conversation).unwrap(), "<|begin_of_text|>User: My lord?\n\nAssistant:");
}
