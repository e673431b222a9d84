package manifests

import (
	"bytes"
	stdjson "encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// object is one object of a file, whatever it is wrapped in.
type object struct {
	where            string // "document 2, items[3]"
	apiVersion, kind string
	raw              map[string]stdjson.RawMessage
	twice            []string // fields that are there twice
	// namespace is where the object is if it doesn't say.
	namespace string
	// labels are keys that its Template gives its objects labels of.
	labels []string
}

// group of the object's apiVersion; empty for v1.
func (o object) group() string {
	group, _, ok := strings.Cut(o.apiVersion, "/")
	if !ok {
		return ""
	}
	return group
}

// maxNesting bounds Lists in Lists.
const maxNesting = 10

// unfold takes the object out of the Lists and Templates that it is wrapped in. What can't be unfolded is returned as
// an object whose kind is that of the wrapper, with the reason.
func unfold(o object, depth int) (all []object, err error) {
	var items stdjson.RawMessage
	var field string
	switch {
	case depth > maxNesting:
		return nil, fmt.Errorf("%s: Lists are nested too deep", o.where)
	case strings.HasSuffix(o.kind, "List") && o.raw["items"] != nil:
		items, field = o.raw["items"], "items"
	case o.kind == "Template" && (o.group() == "template.openshift.io" || o.group() == ""):
		items, field = o.raw["objects"], "objects"
	default:
		return []object{o}, nil
	}
	var list []stdjson.RawMessage
	if len(items) > 0 {
		if err := stdjson.Unmarshal(items, &list); err != nil {
			return nil, fmt.Errorf("%s: %s of the %s: %w", o.where, field, o.kind, err)
		}
	}
	var t template
	if field == "objects" {
		if t, err = readTemplate(o); err != nil {
			return nil, fmt.Errorf("%s: %w", o.where, err)
		}
	}
	for i, raw := range list {
		in := object{where: fmt.Sprintf("%s, %s[%d]", o.where, field, i), namespace: o.namespace, labels: o.labels}
		path := fmt.Sprintf("%s[%d]", field, i)
		for _, f := range o.twice {
			if below, ok := strings.CutPrefix(f, path+"."); ok {
				in.twice = append(in.twice, below)
			} else if !strings.HasPrefix(f, field+"[") {
				in.twice = append(in.twice, wholeObject) // the List's own items, say
			}
		}
		if field == "objects" {
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
		if o.kind != "List" && field == "items" && in.kind == "" {
			in.apiVersion, in.kind = o.apiVersion, strings.TrimSuffix(o.kind, "List")
		}
		more, err := unfold(in, depth+1)
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	return all, nil
}

// wholeObject stands among the fields that are there twice for one that could be any.
const wholeObject = "*"

// read takes the object's fields; false if it is no object.
func (o *object) read(raw []byte) bool {
	if stdjson.Unmarshal(raw, &o.raw) != nil {
		o.raw = nil
		return false
	}
	_ = stdjson.Unmarshal(o.raw["apiVersion"], &o.apiVersion) // of another type: there is none
	_ = stdjson.Unmarshal(o.raw["kind"], &o.kind)
	return true
}

// template is what an OpenShift Template (template.openshift.io/v1) says of its objects.
type template struct {
	parameters map[string]string
	labels     []string
	namespace  string
}

// readTemplate reads the parameters that have a value. The others are asked for, or generated, when the template is
// used.
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
	parameter    = regexp.MustCompile(`\$\{([a-zA-Z0-9_]+)\}`)
	nonStringish = regexp.MustCompile(`^\$\{\{([a-zA-Z0-9_]+)\}\}$`)
)

// substitute puts the parameters' values in: ${NAME} anywhere in a string, and ${{NAME}}, alone, also for what is no
// string. A parameter that has no value stays as it is written, which no name, label or number can be.
func (t template) substitute(raw []byte) []byte {
	d := stdjson.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return raw
	}
	out, err := stdjson.Marshal(t.in(v))
	if err != nil {
		return raw
	}
	return out
}

func (t template) in(v any) any {
	switch v := v.(type) {
	case map[string]any:
		replaced := make(map[string]any, len(v))
		for key, value := range v {
			replaced[t.text(key)] = t.in(value)
		}
		return replaced
	case []any:
		for i := range v {
			v[i] = t.in(v[i])
		}
		return v
	case string:
		if m := nonStringish.FindStringSubmatch(v); m != nil {
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
		return t.text(v)
	}
	return v
}

func (t template) text(s string) string {
	return parameter.ReplaceAllStringFunc(s, func(m string) string {
		if value, ok := t.parameters[m[2:len(m)-1]]; ok {
			return value
		}
		return m
	})
}
