package manifests

import (
	stdjson "encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/json"
)

type meta struct {
	name, namespace                        string
	isStated                               bool // true if the object states its namespace
	labels                                 map[string]string
	unknown                                []string // keys of labels whose values can't be read
	wrongName, wrongNamespace, wrongLabels []complaint
	ignored                                []string
}

type complaint struct{ field, why string }

func (c complaint) String() string { return c.field + ": " + c.why }

var metaFields = func() map[string]bool {
	all := fieldsOf(reflect.TypeFor[metav1.ObjectMeta]())
	all["clusterName"], all["initializers"] = true, true
	return all
}()

var metaNames = func() map[string]bool {
	all := map[string]bool{"metadata": true}
	for name := range metaFields {
		all[strings.ToLower(name)] = true
	}
	return all
}()

func fieldsOf(t reflect.Type) map[string]bool {
	all := map[string]bool{}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		all[name] = true
	}
	return all
}

func (o object) readMeta(raw stdjson.RawMessage, namespaced bool) meta {
	const path = "metadata"
	m := meta{namespace: o.namespace}
	if m.namespace == "" {
		m.namespace = metav1.NamespaceDefault // kubectl's default
	}
	var fields map[string]stdjson.RawMessage
	err := stdjson.Unmarshal(orEmpty(raw), &fields)
	if err != nil || slices.Contains(o.duplicates, path) || slices.Contains(o.duplicates, wholeObject) {
		c := []complaint{{path, "is no object, or is given twice"}}
		m.wrongName, m.wrongNamespace, m.wrongLabels = c, c, c
		return m
	}
	var unknown []complaint
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		if !metaFields[key] {
			m.ignored = append(m.ignored, path+"."+key)
			unknown = append(unknown, complaint{path + "." + key, "there is no such field; it may be a misspelt one"})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(o.raw)) {
		if key != path && metaNames[strings.ToLower(key)] {
			m.ignored = append(m.ignored, key)
			unknown = append(unknown, complaint{key, "there is no such field; it may be metadata, or in it"})
		}
	}
	m.readName(fields["name"], path, o, unknown)
	if namespaced {
		m.readNamespace(fields["namespace"], path, o, unknown)
	}
	m.readLabels(fields["labels"], path, o, unknown)
	return m
}

func orEmpty(raw stdjson.RawMessage) stdjson.RawMessage {
	if raw == nil {
		return stdjson.RawMessage("{}")
	}
	return raw
}

func (m *meta) readName(raw stdjson.RawMessage, path string, o object, unknown []complaint) {
	field := path + ".name"
	switch err := stdjson.Unmarshal(raw, &m.name); {
	case raw == nil:
		m.wrongName = append([]complaint{{field, `"": the name is missing`}}, unknown...)
	case err != nil, slices.Contains(o.duplicates, field):
		why := fmt.Sprintf("%.80s is no string, or the field is given twice", raw)
		m.name, m.wrongName = "", []complaint{{field, why}}
	default:
		if msgs := validation.IsDNS1123Subdomain(m.name); len(msgs) > 0 {
			m.wrongName = []complaint{{field, fmt.Sprintf("%q: %s", m.name, strings.Join(msgs, "; "))}}
		}
	}
}

func (m *meta) readNamespace(raw stdjson.RawMessage, path string, o object, unknown []complaint) {
	field := path + ".namespace"
	var namespace string
	switch err := stdjson.Unmarshal(raw, &namespace); {
	case raw == nil:
		m.wrongNamespace = unknown
		return
	case err != nil, slices.Contains(o.duplicates, field):
		m.wrongNamespace = []complaint{{field, fmt.Sprintf("%.80s is no string, or the field is given twice", raw)}}
		return
	}
	if namespace != "" {
		m.namespace, m.isStated = namespace, true
	}
	if msgs := validation.IsDNS1123Label(m.namespace); len(msgs) > 0 {
		m.wrongNamespace = []complaint{{field, fmt.Sprintf("%q: %s", m.namespace, strings.Join(msgs, "; "))}}
	}
}

func (m *meta) readLabels(raw stdjson.RawMessage, path string, o object, unknown []complaint) {
	field := path + ".labels"
	var values map[string]any
	if err := stdjson.Unmarshal(orEmpty(raw), &values); err != nil || slices.Contains(o.duplicates, field) {
		m.wrongLabels = []complaint{{field, fmt.Sprintf("%.80s are no labels, or the field is given twice", raw)}}
		return
	}
	m.wrongLabels = unknown
	m.unknown = slices.Clone(o.labels)
	m.labels = map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		value, isText := values[key].(string)
		if values[key] == nil { // the API server reads null as an empty string
			isText = true
		}
		msgs := append(validation.IsQualifiedName(key), validation.IsValidLabelValue(value)...)
		for _, f := range o.duplicates {
			if f == field+"."+key {
				msgs = append(msgs, "it is given twice")
			}
		}
		if !isText {
			msgs = append(msgs, fmt.Sprintf("%v is no text: write it in quotes", values[key]))
		}
		switch {
		case len(msgs) > 0:
			m.unknown = append(m.unknown, key)
			why := "Invalid value: " + strings.Join(msgs, "; ")
			m.wrongLabels = append(m.wrongLabels, complaint{field + "." + key, why})
		case !slices.Contains(m.unknown, key):
			m.labels[key] = value
		}
	}
}

func (m meta) unreadable() bool { return m.labels == nil || len(m.ignored) > 0 }

// decode reads the JSON text raw into a value. It ignores fields that the value's type doesn't have. Field names are
// case-sensitive. If raw is nil, decode does nothing.
func decode(raw stdjson.RawMessage, into any) error {
	if raw == nil {
		return nil
	}
	return json.UnmarshalCaseSensitivePreserveInts(raw, into)
}

// decodeStrict does the same as decode, and returns an error for each unknown field and for each field that is given
// twice.
func decodeStrict(raw stdjson.RawMessage, into any) []error {
	if raw == nil {
		return nil
	}
	strict, err := json.UnmarshalStrict(raw, into)
	if err != nil {
		strict = append(strict, err)
	}
	return strict
}
