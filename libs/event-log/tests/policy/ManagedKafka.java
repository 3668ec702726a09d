import java.util.Map;
import org.apache.kafka.common.errors.PolicyViolationException;
import org.apache.kafka.server.policy.CreateTopicPolicy;

/**
 * Refuses topics as a managed Kafka does. The class beside this file is made by
 * `javac --release 17 -cp "$HOME/.cache/carstream/kafka/4.3.1/*" ManagedKafka.java`.
 */
public class ManagedKafka implements CreateTopicPolicy {
    @Override
    public void validate(RequestMetadata topic) {
        String segment = topic.configs().get("segment.bytes");
        if (segment != null && Long.parseLong(segment) < 52428800) {
            throw new PolicyViolationException("segment.bytes must be at least 52428800");
        }
        if (topic.topic().contains("reserved")) {
            throw new PolicyViolationException("this name is reserved for the platform team");
        }
    }

    @Override
    public void configure(Map<String, ?> settings) {}

    @Override
    public void close() {}
}
