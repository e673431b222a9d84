package manifests

import (
	"bytes"
	stdjson "encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

type object struct {
	where            string // such as "document 2, items[3]"
	apiVersion, kind string
	raw              map[string]stdjson.RawMessage
	duplicates       []string // paths of fields that are given twice, or wholeObject
	namespace        string
	labels           []string
}

func (o object) group() string {
	group, _, ok := strings.Cut(o.apiVersion, "/")
	if !ok {
		return ""
	}
	return group
}

const maxNesting = 10

// unfold returns the objects in a List or Template, and in Lists and Templates inside of it. It returns any other
// object unchanged.
func unfold(o object, depth int) (all []object, err error) {
	var field string
	kind := strings.ToLower(o.kind)
	isTemplate := kind == "template" && (o.group() == "template.openshift.io" || o.group() == "")
	switch {
	case depth > maxNesting:
		return nil, fmt.Errorf("%s: Lists are nested too deep", o.where)
	case isTemplate:
		field = o.field("objects")
	case strings.HasSuffix(kind, "list"):
		field = o.field("items")
	}
	if field == "" {
		if unknown := o.unknown("metadata", "message", "labels", "parameters"); isTemplate && unknown != "" {
			return nil, fmt.Errorf("%s: the Template has no objects, but a field %.80q", o.where, unknown)
		}
		if unknown := o.unknown("metadata"); kind == "list" && unknown != "" {
			return nil, fmt.Errorf("%s: the List has no items, but a field %.80q", o.where, unknown)
		}
		return []object{o}, nil
	}
	items := o.raw[field]
	var list []stdjson.RawMessage
	if len(items) > 0 {
		if err := stdjson.Unmarshal(items, &list); err != nil {
			return nil, fmt.Errorf("%s: %s of the %s: %w", o.where, field, o.kind, err)
		}
	}
	var t template
	if isTemplate {
		if t, err = readTemplate(o); err != nil {
			return nil, fmt.Errorf("%s: %w", o.where, err)
		}
	}
	twiceIn, twiceInAll := o.duplicatesInItems(field)
	for i, raw := range list {
		in := object{where: fmt.Sprintf("%s, %s[%d]", o.where, field, i), namespace: o.namespace, labels: o.labels}
		in.duplicates = slices.Concat(twiceInAll, twiceIn[strconv.Itoa(i)])
		if isTemplate {
			raw = t.substitute(raw)
			in.labels = slices.Concat(in.labels, t.labels)
			if t.namespace != "" {
				in.namespace = t.namespace
			}
		}
		if !in.read(raw) {
			all = append(all, in)
			continue
		}
		if kind != "list" && !isTemplate && in.kind == "" {
			in.apiVersion, in.kind = o.apiVersion, o.kind[:len(o.kind)-len("List")]
		}
		more, err := unfold(in, depth+1)
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	return all, nil
}

func (o object) field(name string) string {
	if o.raw[name] != nil {
		return name
	}
	for _, key := range slices.Sorted(maps.Keys(o.raw)) {
		if strings.EqualFold(key, name) {
			return key
		}
	}
	return ""
}

func (o object) unknown(known ...string) string {
	known = append(known, "apiVersion", "kind")
	for _, key := range slices.Sorted(maps.Keys(o.raw)) {
		if !slices.Contains(known, key) {
			return key
		}
	}
	return ""
}

// duplicatesInItems returns which fields of the items are given twice. The parameter field names the list of items.
// The keys of the map in are the items' indexes, and its values are paths of fields below the item. If a field outside
// of the list is given twice, the result all is wholeObject: then every field of every item may be given twice.
func (o object) duplicatesInItems(field string) (in map[string][]string, all []string) {
	in = map[string][]string{}
	for _, f := range o.duplicates {
		rest, ok := strings.CutPrefix(f, field+"[")
		number, below, more := strings.Cut(rest, "]")
		switch {
		case !ok:
			all = []string{wholeObject}
		case more && strings.HasPrefix(below, "."):
			in[number] = append(in[number], below[1:])
		}
	}
	return in, all
}

// wholeObject, in a list of fields that are given twice, means that each field of the object may be given twice.
const wholeObject = "*"

func (o *object) read(raw []byte) bool {
	if stdjson.Unmarshal(raw, &o.raw) != nil {
		o.raw = nil
		return false
	}
	_ = stdjson.Unmarshal(o.raw["apiVersion"], &o.apiVersion) // a value that is no string counts as missing
	_ = stdjson.Unmarshal(o.raw["kind"], &o.kind)
	return true
}

type template struct {
	parameters map[string]string
	labels     []string
	namespace  string
}

// readTemplate reads a Template's namespace, the keys of its labels, and the parameters that have a value.
func readTemplate(o object) (t template, err error) {
	var read struct {
		Metadata struct {
			Namespace string `json:"namespace"`
		} `json:"metadata"`
		Labels     map[string]any `json:"labels"`
		Parameters []struct {
			Name  string `json:"name"`
			Value any    `json:"value"`
		} `json:"parameters"`
	}
	for key, into := range map[string]any{
		"metadata": &read.Metadata, "labels": &read.Labels, "parameters": &read.Parameters,
	} {
		if raw := o.raw[key]; raw != nil {
			d := stdjson.NewDecoder(bytes.NewReader(raw))
			d.UseNumber()
			if err := d.Decode(into); err != nil {
				return t, fmt.Errorf("%s of the Template: %w", key, err)
			}
		}
	}
	t.namespace, t.parameters = read.Metadata.Namespace, map[string]string{}
	for key := range read.Labels {
		t.labels = append(t.labels, key)
	}
	slices.Sort(t.labels)
	for _, p := range read.Parameters {
		if value := fmt.Sprint(p.Value); p.Value != nil && value != "" {
			t.parameters[p.Name] = value
		}
	}
	return t, nil
}

var (
	parameter      = regexp.MustCompile(`\$\{([a-zA-Z0-9_]+)\}`)
	wholeParameter = regexp.MustCompile(`^\$\{\{([a-zA-Z0-9_]+)\}\}$`)
)

// substitute replaces a Template's parameters in the JSON value. ${NAME} in a string or key is replaced by the value as
// text. A string that is exactly ${{NAME}} is replaced by the value as JSON.
func (t template) substitute(raw []byte) []byte {
	d := stdjson.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return raw
	}
	out, err := stdjson.Marshal(t.substituteIn(v))
	if err != nil {
		return raw
	}
	return out
}

func (t template) substituteIn(v any) any {
	switch v := v.(type) {
	case map[string]any:
		replaced := make(map[string]any, len(v))
		for key, value := range v {
			replaced[t.substituteText(key)] = t.substituteIn(value)
		}
		return replaced
	case []any:
		for i := range v {
			v[i] = t.substituteIn(v[i])
		}
		return v
	case string:
		if m := wholeParameter.FindStringSubmatch(v); m != nil {
			value, ok := t.parameters[m[1]]
			if !ok {
				return v
			}
			var other any
			d := stdjson.NewDecoder(strings.NewReader(value))
			d.UseNumber()
			if d.Decode(&other) == nil && !d.More() {
				return other
			}
			return value
		}
		return t.substituteText(v)
	}
	return v
}

func (t template) substituteText(s string) string {
	return parameter.ReplaceAllStringFunc(s, func(m string) string {
		if value, ok := t.parameters[m[2:len(m)-1]]; ok {
			return value
		}
		return m
	})
}
