package circleci.utils

# Small conversions that policies share: a config writes one thing as a text and many as a list.

to_set(value) = value {
	is_set(value)
}

to_set(value) = elements {
	is_array(value)
	elements := {each | each := value[_]}
}

to_set(value) = {value} {
	not is_set(value)
	not is_array(value)
}

to_array(value) = value {
	is_array(value)
}

to_array(value) = [value] {
	not is_array(value)
}

# `build` and `{build: {…}}` are both called `build`.
get_element_name(element) = element {
	is_string(element)
}

get_element_name(element) = name {
	is_object(element)
	count(element) == 1
	element[name]
}

is_parameterized_expression(text) {
	regex.match(`<<\s*(pipeline|parameters)(\.[\w-]+)+\s*>>`, text)
}
