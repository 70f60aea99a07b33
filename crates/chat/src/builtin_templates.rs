//! Which templates can be chosen by name, for a model file that has none?
//!
//! Never chosen silently: a wrong template makes a model answer badly and nobody knows why.

/// The template called `name`.
pub fn builtin_template(name: &str) -> Option<&'static str> {
    BUILTIN.iter().find(|(known, _)| *known == name).map(|(_, source)| *source)
}

/// Every name that [`builtin_template`] knows.
pub fn builtin_template_names() -> impl Iterator<Item = &'static str> {
    BUILTIN.iter().map(|(name, _)| *name)
}

/// Turns between markers that the model was trained on, written from the formats' descriptions.
const BUILTIN: [(&str, &str); 4] = [
    (
        "chatml",
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' \
         + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    ),
    (
        "gemma",
        "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' \
         + ('model' if message['role'] == 'assistant' else 'user') + '\\n' \
         + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
    ),
    (
        "llama3",
        "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] \
         + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}\
         {% if add_generation_prompt %}\
         {{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    ),
    (
        "phi3",
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] \
         + '<|end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}\
         {% endif %}",
    ),
];
