package manifests

import (
	"bytes"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode/utf16"

	goyaml "go.yaml.in/yaml/v2"
	"sigs.k8s.io/yaml"
)

type document struct {
	where            string // such as "document 2"
	json             []byte // nil if the document can't be parsed
	duplicates       []string
	err              error
	mayContainPolicy bool
}

func documents(data []byte) []document {
	var all []document
	for i, text := range splitDocuments(toUTF8(data)) {
		where := fmt.Sprintf("document %d", i+1)
		if objects, ok := splitJSON(text); ok {
			for k, o := range objects {
				d := document{where: where, json: o, duplicates: duplicatesInJSON(o)}
				if len(objects) > 1 {
					d.where = fmt.Sprintf("%s, object %d", where, k+1)
				}
				all = append(all, d)
			}
			continue
		}
		d := document{where: where}
		if d.err = checkSingle(text); d.err == nil {
			d.json, d.err = yaml.YAMLToJSON(text)
			d.duplicates = duplicatesInYAML(text)
		}
		if errors.Is(d.err, io.EOF) || (d.err == nil && string(d.json) == "null") {
			continue // the document has only comments
		}
		if d.err == nil && bytes.HasPrefix(d.json, []byte(`"`)) && anyKind.Match(text) {
			d.err = errors.New("it is one text, in which a kind is named") // for example JSON after a line that begins with //
		}
		if d.err != nil {
			d.json, d.mayContainPolicy = nil, mayContainPolicy(text)
		}
		all = append(all, d)
	}
	return all
}

// toUTF8 returns the text as UTF-8, without a byte order mark. It also reads UTF-16, which PowerShell writes.
func toUTF8(data []byte) []byte {
	var bigEndian bool
	switch {
	case bytes.HasPrefix(data, []byte{0xff, 0xfe}):
	case bytes.HasPrefix(data, []byte{0xfe, 0xff}):
		bigEndian = true
	default:
		return bytes.TrimPrefix(data, []byte("\ufeff"))
	}
	units := make([]uint16, 0, len(data)/2)
	for i := 2; i+1 < len(data); i += 2 {
		low, high := uint16(data[i]), uint16(data[i+1])
		if bigEndian {
			low, high = high, low
		}
		units = append(units, high<<8|low)
	}
	return []byte(string(utf16.Decode(units)))
}

// splitDocuments splits the stream at the lines that begin with --- or ... (YAML 1.2, section 9). The rest of such a
// line belongs to the next document, unless the rest is a comment.
func splitDocuments(data []byte) [][]byte {
	var all [][]byte
	var now []byte
	end := func() {
		if len(now) > 0 {
			all = append(all, now)
		}
		now = nil
	}
	for line := range bytes.Lines(data) {
		rest, starts := bytes.CutPrefix(line, []byte("---"))
		if !starts {
			rest, starts = bytes.CutPrefix(line, []byte("..."))
		}
		if !starts || (len(rest) > 0 && !bytes.ContainsAny(rest[:1], " \t\r\n")) {
			if line[0] == '%' && len(bytes.TrimSpace(now)) == 0 {
				line = []byte("\n") // removes a directive, such as %YAML 1.1
			}
			now = append(now, line...)
			continue
		}
		end()
		if behind := bytes.TrimSpace(rest); len(behind) > 0 && behind[0] != '#' {
			now = append([]byte("   "), rest...)
		}
	}
	end()
	return all
}

// splitJSON splits the text into JSON objects. Like kubectl, it accepts several objects in a row. It ignores lines with
// YAML comments.
func splitJSON(text []byte) (objects [][]byte, ok bool) {
	var lines []byte
	for line := range bytes.Lines(text) { // splitting at lines is safe, because a JSON string contains no line break
		if !bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")) {
			lines = append(lines, line...)
		}
	}
	text = bytes.TrimSpace(lines)
	if !bytes.HasPrefix(text, []byte("{")) {
		return nil, false
	}
	d := stdjson.NewDecoder(bytes.NewReader(text))
	for {
		var o stdjson.RawMessage
		if err := d.Decode(&o); errors.Is(err, io.EOF) {
			return objects, true
		} else if err != nil || !bytes.HasPrefix(o, []byte("{")) {
			return nil, false // the text isn't JSON, but may be YAML
		}
		objects = append(objects, o)
	}
}

// checkSingle returns an error if the text has a second YAML document, because yaml.YAMLToJSON would ignore it. If the
// text has no document, the error is io.EOF.
func checkSingle(doc []byte) error {
	d := goyaml.NewDecoder(bytes.NewReader(doc))
	var ignored any
	if err := d.Decode(&ignored); err != nil {
		return err
	}
	if err := d.Decode(&ignored); !errors.Is(err, io.EOF) {
		return errors.New("something stands behind the object; objects are separated by lines with ---")
	}
	return nil
}

var anyKind = regexp.MustCompile(`(?i)\bkind["']?[ \t]*:[ \t]*["']?([\w.{]*)`)

// mayContainPolicy reports whether a text that can't be parsed may have a policy. It returns false only if the text
// names kinds, and no named kind can contain a policy.
func mayContainPolicy(text []byte) bool {
	kinds := anyKind.FindAllSubmatch(text, -1)
	for _, k := range kinds {
		if !harmlessKinds[string(k[1])] {
			return true
		}
	}
	return len(kinds) == 0
}

var harmlessKinds = func() map[string]bool {
	all := map[string]bool{}
	for kind := range strings.FieldsSeq(`ClusterRole ClusterRoleBinding ConfigMap CronJob CustomResourceDefinition
		DaemonSet Deployment Endpoints EndpointSlice HorizontalPodAutoscaler Ingress IngressClass Issuer Job LimitRange
		Namespace Node PersistentVolume PersistentVolumeClaim Pod PodDisruptionBudget PriorityClass ReplicaSet
		ReplicationController ResourceQuota Role RoleBinding Secret Service ServiceAccount ServiceMonitor StatefulSet
		StorageClass User Group`) {
		all[kind] = true
	}
	return all
}()

var alreadySet = regexp.MustCompile(`already set`)

// duplicatesInYAML returns the paths of the fields that are given twice. Readers of YAML may accept such fields, and
// then use the last value.
func duplicatesInYAML(doc []byte) []string {
	var ignored any
	if err := goyaml.UnmarshalStrict(doc, &ignored); err == nil || !alreadySet.MatchString(err.Error()) {
		return nil
	}
	var top goyaml.MapSlice
	if err := goyaml.Unmarshal(doc, &top); err != nil {
		return nil // the document is no object
	}
	var t duplicateFinder
	t.findInYAML(top)
	return t.fields
}

// maxDuplicates limits the total length, in bytes, of the paths that a duplicateFinder records. Beyond the limit, each
// field of the object counts as given twice.
const maxDuplicates = 16 << 20

type duplicateFinder struct {
	path   []string
	fields []string
	size   int // sum of the lengths of the texts in fields
}

func (t *duplicateFinder) findInYAML(v any) {
	switch v := v.(type) {
	case goyaml.MapSlice:
		seen := make(map[string]bool, len(v))
		for _, item := range v {
			step := fmt.Sprintf(".%v", item.Key)
			t.path = append(t.path, step)
			if seen[step] {
				t.add()
			}
			seen[step] = true
			t.findInYAML(item.Value)
			t.path = t.path[:len(t.path)-1]
		}
	case []any:
		for i, item := range v {
			t.path = append(t.path, fmt.Sprintf("[%d]", i))
			t.findInYAML(item)
			t.path = t.path[:len(t.path)-1]
		}
	}
}

// add records the path of the current field as given twice. If the total length of the paths exceeds maxDuplicates, it
// records wholeObject instead: then every field of the object counts as given twice.
func (t *duplicateFinder) add() {
	if t.size > maxDuplicates {
		return
	}
	field := strings.TrimPrefix(strings.Join(t.path, ""), ".")
	t.size += len(field)
	if t.size > maxDuplicates {
		field = wholeObject
	}
	t.fields = append(t.fields, field)
}

func duplicatesInJSON(doc []byte) []string {
	d := stdjson.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	var t duplicateFinder
	if t.findInJSON(d) != nil {
		return nil // impossible: the text was parsed before
	}
	return t.fields
}

func (t *duplicateFinder) findInJSON(d *stdjson.Decoder) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	delim, _ := token.(stdjson.Delim)
	if delim != '{' && delim != '[' {
		return nil
	}
	seen := map[string]bool{}
	for i := 0; d.More(); i++ {
		step := fmt.Sprintf("[%d]", i)
		if delim == '{' {
			key, err := d.Token()
			if err != nil {
				return err
			}
			step = fmt.Sprintf(".%v", key)
		}
		t.path = append(t.path, step)
		if seen[step] {
			t.add()
		}
		seen[step] = true
		if err := t.findInJSON(d); err != nil {
			return err
		}
		t.path = t.path[:len(t.path)-1]
	}
	_, err = d.Token() // the closing bracket
	return err
}
