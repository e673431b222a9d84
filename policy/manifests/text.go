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
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// document is what of a file is meant to be one object.
type document struct {
	where string // "document 2"
	json  []byte // nil if it can't be parsed, or if there is nothing in it
	twice []string
	// err says why it can't be parsed.
	err error
	// mayHoldPolicy says of one that can't be parsed whether there could be a policy in it.
	mayHoldPolicy bool
}

// documents reads YAML documents, and JSON objects one after the other, as kubectl does.
func documents(data []byte) []document {
	var all []document
	for i, text := range splitDocuments(toUTF8(data)) {
		where := fmt.Sprintf("document %d", i+1)
		trimmed := bytes.TrimSpace(text)
		if objects, ok := jsonStream(trimmed); ok {
			for k, o := range objects {
				d := document{where: where, json: o, twice: twiceInJSON(o)}
				if len(objects) > 1 {
					d.where = fmt.Sprintf("%s, object %d", where, k+1)
				}
				all = append(all, d)
			}
			continue
		}
		d := document{where: where}
		if d.err = single(text); d.err == nil {
			d.json, d.err = yaml.YAMLToJSON(text)
			d.twice = twiceInYAML(text)
		}
		if errors.Is(d.err, io.EOF) || (d.err == nil && string(d.json) == "null") {
			continue // only comments
		}
		if d.err != nil {
			d.json, d.mayHoldPolicy = nil, mayHoldPolicy(text)
		}
		all = append(all, d)
	}
	return all
}

// toUTF8 reads UTF-16 too, in which PowerShell writes files, and takes the byte order mark away.
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

// splitDocuments cuts at lines with --- or ..., as YAML's own streams do (YAML 1.2, section 9). What stands behind
// --- on its line belongs to the document that begins there. A document without a single byte doesn't count.
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
			if line[0] == '%' && len(now) == 0 {
				line = []byte("\n") // a directive, such as %YAML 1.1
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

// jsonStream are the JSON objects that the text consists of; ok is false if it is something else.
func jsonStream(text []byte) (objects [][]byte, ok bool) {
	if !bytes.HasPrefix(text, []byte("{")) {
		return nil, false
	}
	d := stdjson.NewDecoder(bytes.NewReader(text))
	for {
		var o stdjson.RawMessage
		if err := d.Decode(&o); errors.Is(err, io.EOF) {
			return objects, true
		} else if err != nil || !bytes.HasPrefix(o, []byte("{")) {
			return nil, false // maybe it is YAML
		}
		objects = append(objects, o)
	}
}

// single makes sure that nothing stands behind the first YAML document: readers of one document leave the rest out
// without a word. Its error is io.EOF if there is none.
func single(doc []byte) error {
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

// anyKind finds what could be the kind of an object, or of one within it.
var anyKind = regexp.MustCompile(`(?i)\bkind["']?[ \t]*:[ \t]*["']?([\w.{]*)`)

// mayHoldPolicy says of text that can't be parsed whether it could hold a policy. It couldn't if it names the kinds
// of its objects, and all of them are known to be something else.
func mayHoldPolicy(text []byte) bool {
	kinds := anyKind.FindAllSubmatch(text, -1)
	for _, k := range kinds {
		if !harmless[string(k[1])] {
			return true
		}
	}
	return len(kinds) == 0
}

// harmless are kinds of which no policy is one, nor holds one.
var harmless = func() map[string]bool {
	all := map[string]bool{}
	for kind := range strings.FieldsSeq(`ClusterRole ClusterRoleBinding ConfigMap CronJob CustomResourceDefinition DaemonSet
		Deployment Endpoints EndpointSlice HorizontalPodAutoscaler Ingress IngressClass Issuer Job LimitRange Namespace Node
		PersistentVolume PersistentVolumeClaim Pod PodDisruptionBudget PriorityClass ReplicaSet ReplicationController
		ResourceQuota Role RoleBinding Secret Service ServiceAccount ServiceMonitor StatefulSet StorageClass User Group`) {
		all[kind] = true
	}
	return all
}()

var alreadySet = regexp.MustCompile(`already set`)

// twiceInYAML are the fields that are there twice, of which readers take the last.
func twiceInYAML(doc []byte) []string {
	var ignored any
	if err := goyaml.UnmarshalStrict(doc, &ignored); err == nil || !alreadySet.MatchString(err.Error()) {
		return nil
	}
	var top goyaml.MapSlice
	if err := goyaml.Unmarshal(doc, &top); err != nil {
		return nil // no object
	}
	return twiceIn(top, "")
}

func twiceIn(v any, path string) (all []string) {
	switch v := v.(type) {
	case goyaml.MapSlice:
		seen := map[string]bool{}
		for _, item := range v {
			p := strings.TrimPrefix(fmt.Sprintf("%s.%v", path, item.Key), ".")
			if seen[p] {
				all = append(all, p)
			}
			seen[p] = true
			all = append(all, twiceIn(item.Value, p)...)
		}
	case []any:
		for i, item := range v {
			all = append(all, twiceIn(item, fmt.Sprintf("%s[%d]", path, i))...)
		}
	}
	return all
}

var duplicate = regexp.MustCompile(`duplicate field "(.*)"`)

func twiceInJSON(doc []byte) (all []string) {
	var ignored map[string]any
	strict, err := json.UnmarshalStrict(doc, &ignored)
	if err != nil {
		return nil
	}
	for _, e := range strict {
		if m := duplicate.FindStringSubmatch(e.Error()); m != nil {
			all = append(all, m[1])
		}
	}
	return all
}
