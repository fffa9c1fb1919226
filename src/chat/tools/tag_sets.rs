//! Tags that several formats have in common, or nearly so.

use super::xml_call::{Edges, XmlTags};

/// `get_weather><parameter=city>Paris</parameter></function>`, on lines.
pub(super) const FUNCTION_TAGS: XmlTags = XmlTags {
    name_end: ">",
    head_end: "",
    key_open: "<parameter=",
    key_close: ">",
    value_open: &[],
    skips_to_value: false,
    value_close: "</parameter>",
    call_close: "</function>",
    edges: Edges::LineBreak,
};

/// `get_weather"><parameter name="city">Paris</parameter></invoke>`
pub(super) const INVOKE_TAGS: XmlTags = XmlTags {
    name_end: "\">",
    key_open: "<parameter name=\"",
    key_close: "\">",
    call_close: "</invoke>",
    edges: Edges::Kept,
    ..FUNCTION_TAGS
};

/// `get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>`
pub(super) const ARG_TAGS: XmlTags = XmlTags {
    name_end: "\n",
    head_end: "",
    key_open: "<arg_key>",
    key_close: "</arg_key>",
    value_open: &[("<arg_value>", None)],
    skips_to_value: false,
    value_close: "</arg_value>",
    call_close: "</tool_call>",
    edges: Edges::Kept,
};

/// As [`INVOKE_TAGS`] with a token of their own in the tags, and whether a value is a string.
pub(super) const DSML_TAGS: XmlTags = XmlTags {
    name_end: "\">",
    head_end: "",
    key_open: "<｜DSML｜parameter name=\"",
    key_close: "\"",
    value_open: &[("string=\"true\">", Some(true)), ("string=\"false\">", Some(false))],
    skips_to_value: false,
    value_close: "</｜DSML｜parameter>",
    call_close: "</｜DSML｜invoke>",
    edges: Edges::Kept,
};
