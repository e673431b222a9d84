package policy

import (
	"strconv"
	"strings"
)

const (
	// hashAlphabet has the characters of hashes and of random endings in pods' names
	// (k8s.io/apimachinery/pkg/util/rand).
	hashAlphabet = "bcdfghjklmnpqrstvwxz2456789"
	digits       = "0123456789"
	// A generated name has two parts: the generateName, cut to maxGenerated characters, and randomLength random
	// characters (k8s.io/apiserver/pkg/storage/names).
	randomLength = 5
	maxGenerated = 58
	// maxHash is the length of the longest hash of a pod template: a 32-bit number in decimal, with another character in
	// place of each digit (ComputeHash in k8s.io/kubernetes/pkg/controller).
	maxHash = 10
)

type named struct {
	word  string // hash of a Deployment's template, time of a CronJob's job, or version of a DeploymentConfig
	whole bool   // false if the end of the word may be missing in the name
	index string // index of an indexed job's pod
}

// read returns the parts of a pod's name that the type named describes: the word and the index. ok is false if no pod
// of the workload can have this name.
func (w Workload) read(name string) (n named, ok bool) {
	if len(name) <= randomLength {
		return named{}, false
	}
	base, random := name[:len(name)-randomLength], name[len(name)-randomLength:]
	if len(base) > maxGenerated || strings.Trim(random, hashAlphabet) != "" {
		return named{}, false
	}
	cut := len(base) == maxGenerated // a name of this length may have been cut
	switch {
	case w.Indexed:
		// The job controller cuts the job's name, and not the index (podGenerateNameWithIndex in
		// k8s.io/kubernetes/pkg/controller/job).
		job, number, ok := cutLast(strings.TrimSuffix(base, "-"))
		if _, isNumber := ordinal(number); !ok || !isNumber || !strings.HasSuffix(base, "-") {
			return named{}, false
		}
		n.index, base = number, job
	case strings.HasSuffix(base, "-") && !cut:
		base = strings.TrimSuffix(base, "-")
	case !cut:
		return named{}, false
	}
	if n.word, n.whole, ok = after(base, w.Name, wordAlphabet(w.Kind), cut, !w.Indexed); !ok {
		return named{}, false
	}
	return n, true
}

func wordAlphabet(kind string) string {
	switch kind {
	case "Deployment":
		return hashAlphabet
	case "CronJob", "DeploymentConfig":
		return digits
	}
	return ""
}

// after returns WORD from a text of the form NAME-WORD. If the alphabet is empty, the text must be NAME alone. If cut
// is true, the end of the text may be missing, and whole is false if WORD may be incomplete. If dash is also true, a
// dash after WORD shows that WORD is complete. ok is false if the text has another form.
func after(text, name, alphabet string, cut, dash bool) (word string, whole, ok bool) {
	if alphabet != "" {
		name += "-"
	}
	if cut && len(text) <= len(name) {
		return "", alphabet == "", strings.HasPrefix(name, text) // the text ends within NAME
	}
	word, ok = strings.CutPrefix(text, name)
	whole = !cut
	if cut && dash && strings.HasSuffix(word, "-") {
		word, whole = strings.TrimSuffix(word, "-"), true
	}
	if alphabet == "" {
		return "", true, ok && word == ""
	}
	return word, whole, ok && word != "" && len(word) <= maxHash && strings.Trim(word, alphabet) == ""
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndex(s, "-")
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

func ordinal(s string) (int, bool) {
	n, err := strconv.ParseInt(s, 10, 32)
	return int(n), err == nil && n >= 0 && strconv.FormatInt(n, 10) == s
}
